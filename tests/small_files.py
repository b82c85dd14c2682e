"""Files as other programs may write them; no tests in here."""

from __future__ import annotations

import nibabel as nib
import numpy as np


def stored(path, array, affine=None):
    """A NIfTI file as any other program may write it."""
    image = nib.Nifti1Image(
        np.asarray(array), np.diag([4.0, 4, 4, 1]) if affine is None else affine
    )
    nib.save(image, path)
    return path
