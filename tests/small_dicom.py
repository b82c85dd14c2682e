"""DICOM series of a study, written with pydicom; no tests in here."""

from __future__ import annotations

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
KINDS = {"CT": "1.2.840.10008.5.1.4.1.1.2", "PT": "1.2.840.10008.5.1.4.1.1.128",
         "MR": "1.2.840.10008.5.1.4.1.1.4"}  # fmt: skip


def ramp(x, y, z):
    """A brightness that linear interpolation meets exactly, by place in mm (LPS)."""
    return 10 * x - 20 * y + 5 * z + 100


def put_series(
    folder, modality, *, uid, shape=(8, 7, 6), spacing=(2, 2, 2), origin=(0, 0, 0), patient="P1",
    study="1.5", frame="1.7", description="", step=1.0, values=ramp,
):  # fmt: skip
    """A series of slices; ``values`` at each place, stored as whole numbers of ``step``."""
    folder.mkdir(parents=True, exist_ok=True)
    i, j, k = np.meshgrid(*map(np.arange, shape), indexing="ij")
    places = [o + s * n for o, s, n in zip(origin, spacing, (i, j, k), strict=True)]
    array = np.rint(values(*places) / step).astype(np.int16)
    for n in range(shape[2]):
        made = pydicom.dataset.Dataset()
        made.SOPClassUID, made.SOPInstanceUID = KINDS[modality], f"1.8.{uid}.{n + 1}"
        made.Modality, made.PatientID, made.SeriesDescription = modality, patient, description
        made.StudyInstanceUID, made.SeriesInstanceUID = study, f"1.8.{uid}"
        if frame:
            made.FrameOfReferenceUID = frame
        made.ImagePositionPatient = [*origin[:2], origin[2] + spacing[2] * n]
        made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        made.PixelSpacing, made.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        made.Columns, made.Rows, made.SamplesPerPixel = shape[0], shape[1], 1
        made.PhotometricInterpretation, made.PixelRepresentation = "MONOCHROME2", 1
        made.BitsAllocated, made.BitsStored, made.HighBit = 16, 16, 15
        made.RescaleSlope, made.RescaleIntercept = str(step), "0"
        made.PixelData = np.ascontiguousarray(array[:, :, n].T).tobytes()
        made["PixelData"].VR = "OW"
        made.file_meta = pydicom.dataset.FileMetaDataset()
        made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        made.save_as(folder / f"{modality}_{uid}_{n:03d}.dcm", enforce_file_format=True)
    return array
