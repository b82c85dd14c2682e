"""Data sets as they are found elsewhere, made into checked NIfTI files with a data list."""

from medvae3d.data.importing.layouts import FORMATS, find_layout
from medvae3d.data.importing.writing import import_dataset

__all__ = ["FORMATS", "find_layout", "import_dataset"]
