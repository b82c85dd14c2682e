"""Volumes, data lists and manifests: what is read, what is checked, and what is written back."""
