"""Stands in for pydicom-seg, which does not know pydicom 3; see ../README.md."""
