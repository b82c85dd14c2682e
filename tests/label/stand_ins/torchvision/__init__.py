"""Stands in for torchvision, which a torch for CPUs from PyPI has no build of; see ../README.md."""
