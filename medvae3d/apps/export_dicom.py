"""Cases as DICOM: a series a channel, and the mask as a segmentation of the first of them.

Pixels are the voxels as stored, with the slope that makes values of them; floats become 16 bits.
All that would differ from run to run (UIDs, dates) is a function of the seed and of the case.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvae3d import __version__
from medvae3d.apps.export_cases import (
    facts_of,
    label_names,
    letters,
    require_different,
    write_json,
)
from medvae3d.apps.export_dicom_values import StoredVolume, decimal
from medvae3d.data.datalists import Case, DataList
from medvae3d.data.importing.common import LPS_TO_RAS
from medvae3d.data.volumes import label_values, read_mask
from medvae3d.errors import LabelError, SettingError
from medvae3d.geometry import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

CT, MR, PET = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.128",
)
MODALITIES = {
    **dict.fromkeys(("ct",), ("CT", CT)),
    **dict.fromkeys(("pet", "pt", "suv"), ("PT", PET)),
    **dict.fromkeys(
        ("mr", "mri", "t1", "t1w", "t1n", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2f", "pd", "pdw",
         "flair", "dwi", "adc", "swi"),
        ("MR", MR),
    ),
}  # fmt: skip
# DICOM wants dates; a true one would make bytes differ from run to run.
DATE, TIME = "20000101", "000000"
LESION_WORDS = ("lesion", "tumour", "tumor", "gtv", "metastasis", "core", "edema", "oedema")


class DicomWriter:
    """Writes cases as studies.

    Args:
        folder: Where to; a folder a case, with a folder a series.
        names: Names of the channels, which say what modality each is.
        listed: The cases.
        seed: Part of all UIDs.
    """

    def __init__(self, folder: Path, names: Sequence[str], listed: DataList, seed: int = 0) -> None:
        try:
            import highdicom  # noqa: F401
        except ImportError as error:
            raise SettingError(
                f"DICOM needs {error.name}, which is not installed; it comes with "
                f"pip install 'medvae3d[dicom]'."
            ) from error
        unknown = [name for name in names if name.lower() not in MODALITIES]
        if unknown:
            raise SettingError(
                f"there is no DICOM modality for the channel {unknown[0]!r}; known are "
                f"{', '.join(MODALITIES)}. Give names of these with --channels, in order."
            )
        require_different(names, [letters(name).lower() for name in names], "folder")
        self.folder, self.names, self.listed, self.seed = folder, names, listed, seed
        self.cases: list[dict[str, Any]] = []

    def write(self, case: Case, index: int) -> None:
        """Writes the study of a case."""
        facts = facts_of(case, self.listed)
        volumes = [StoredVolume.read(path) for path in case.image]
        for path, volume in zip(case.image[1:], volumes[1:], strict=True):
            volumes[0].grid.require_same(volume.grid, this=str(case.image[0]), that=str(path))
        content = hashlib.sha256()
        for volume in volumes:
            content.update(volume.pixels.tobytes() + volume.grid.affine.tobytes())
        root = (self.seed, case.name, content.hexdigest())
        place = self.folder / f"{letters(case.name)}_{index:05d}"
        about: dict[str, Any] = {
            "case": case.name, "split": case.split, "folder": place.name,
            "synthetic": facts["Synthetic"], "study": uid(*root, "study"), "series": {},
        }  # fmt: skip
        first: list[Any] = []
        for number, (name, volume) in enumerate(zip(self.names, volumes, strict=True), start=1):
            slices = self._series(case, volume, name, number, root, facts)
            for k, each in enumerate(slices, start=1):
                _save(each, place / letters(name) / f"{k:04d}.dcm")
            about["series"][name] = {
                "uid": slices[0].SeriesInstanceUID, "largest_rounding": volume.rounding
            }  # fmt: skip
            first = first or slices
        if case.label is not None:
            mask = read_mask(case.label)
            this, that = str(case.image[0]), str(case.label)
            volumes[0].grid.require_same(mask.grid, this=this, that=that)
            made = self._segmentation(mask.array, first, root, facts, case)
            _save(made, place / "segmentation" / "0001.dcm")
            about["segmentation"] = made.SeriesInstanceUID
        if "Record" in facts:
            write_json(place / "record.json", facts["Record"])
        self.cases.append(about)

    def finish(self) -> None:
        """Writes which study is which case."""
        write_json(self.folder / "studies.json", {"seed": self.seed, "cases": self.cases})

    def _series(
        self,
        case: Case,
        volume: StoredVolume,
        name: str,
        number: int,
        root: tuple[Any, ...],
        facts: Mapping[str, Any],
    ) -> list[Any]:
        modality, kind = MODALITIES[name.lower()]
        common = {
            **_patient(case, facts, root),
            **_SPECIFIC[modality],
            "SOPClassUID": kind,
            "Modality": modality,
            "SeriesInstanceUID": uid(*root, "series", number),
            "SeriesNumber": number,
            "SeriesDescription": f"{name}, synthetic" if facts["Synthetic"] else name,
            "FrameOfReferenceUID": uid(*root, "frame"),
            "ImageType": _image_type(modality, facts["Synthetic"]),
            **_geometry(volume.grid),
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": volume.pixels.shape[1],
            "Columns": volume.pixels.shape[0],
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": int(volume.pixels.dtype.kind == "i"),
        }
        # MR has none by the standard; it gets one where values would be lost without.
        if modality != "MR" or (volume.slope, volume.intercept) != (1, 0):
            common["RescaleSlope"] = decimal(volume.slope, least=0)
            common["RescaleIntercept"] = decimal(volume.intercept)
        if modality == "PT":
            common["NumberOfSlices"] = volume.pixels.shape[2]
        lps = LPS_TO_RAS @ volume.grid.affine
        made = []
        for k in range(volume.pixels.shape[2]):
            position = lps @ (0, 0, k, 1)
            own = {
                "SOPInstanceUID": uid(*root, "series", number, "slice", k),
                "InstanceNumber": k + 1,
                "ImagePositionPatient": [decimal(v) for v in position[:3]],
                "PixelData": np.ascontiguousarray(volume.pixels[:, :, k].T).tobytes(),
            }
            if modality == "PT":
                own["ImageIndex"] = k + 1
            made.append(_dataset({**common, **own}))
        return made

    def _segmentation(
        self,
        mask: NDArray[Any],
        series: Sequence[Any],
        root: tuple[Any, ...],
        facts: Mapping[str, Any],
        case: Case,
    ) -> Any:
        import highdicom as hd
        from pydicom.sr.codedict import codes

        names = {value: name for name, value in label_names(self.listed).items() if value}
        there = [value for value in label_values(mask) if value]
        unknown = [value for value in there if value not in names]
        if unknown:
            raise LabelError(
                f"{case.label} holds the values {unknown}; the list names {names or 'none'}. Name "
                f"them under 'labels' of the list: a segment needs a name."
            )
        values = sorted(names)
        numbered = np.zeros(mask.shape, np.uint8)
        for number, value in enumerate(values, start=1):
            numbered[mask == value] = number
        by_model = facts["Synthetic"]
        algorithm = hd.AlgorithmIdentificationSequence(
            "medvae3d", codes.DCM.ArtificialIntelligence, __version__
        )
        described = [
            hd.seg.SegmentDescription(
                number,
                names[value],
                *_codes(names[value]),
                "AUTOMATIC" if by_model else "MANUAL",
                algorithm if by_model else None,
            )
            for number, value in enumerate(values, start=1)
        ]
        made: Any = hd.seg.Segmentation(
            source_images=list(series),
            pixel_array=np.ascontiguousarray(numbered.transpose(2, 1, 0)),
            segmentation_type="BINARY",
            segment_descriptions=described,
            series_instance_uid=uid(*root, "segmentation"),
            series_number=len(self.names) + 1,
            sop_instance_uid=uid(*root, "segmentation", "instance"),
            instance_number=1,
            manufacturer="medvae3d",
            manufacturer_model_name="medvae3d",
            software_versions=__version__,
            device_serial_number="0",
            content_label="LESIONS",
            omit_empty_frames=bool(there),
            series_description="mask, synthetic" if by_model else "mask",
        )
        made.SyntheticData = "YES" if by_model else "NO"
        made.file_meta.ImplementationVersionName = "medvae3d"
        for element in made.iterall():
            if element.value and element.VR in ("DA", "TM", "DT"):
                element.value = {"DA": DATE, "TM": TIME, "DT": DATE + TIME}[element.VR]
            if element.keyword == "DimensionOrganizationUID":
                element.value = uid(*root, "dimensions")
        return made


def uid(*parts: object) -> str:
    """A UID made of what it is for: the same parts give the same one."""
    text = "\x1f".join(map(str, ("medvae3d", *parts)))
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}"


def _geometry(grid: Grid) -> dict[str, Any]:
    lps = (LPS_TO_RAS @ grid.affine)[:3, :3] / grid.spacing
    i, j, k = grid.spacing
    return {
        # Along a row the column number grows, which is our first axis.
        "ImageOrientationPatient": [decimal(v) for v in (*lps[:, 0], *lps[:, 1])],
        "PixelSpacing": [decimal(j), decimal(i)],
        "SliceThickness": decimal(k),
        "SpacingBetweenSlices": decimal(k),
    }


def _patient(case: Case, facts: Mapping[str, Any], root: tuple[Any, ...]) -> dict[str, Any]:
    synthetic = facts["Synthetic"]
    record = facts.get("Record", {})
    name = letters(case.name if synthetic else case.subject)[:56]
    made = f"made by medvae3d {__version__}, {record.get('bundle', 'bundle unknown')}"
    return {
        # A name of one part ends in the sign that parts them, or it would be taken for half a name.
        "PatientName": f"SYNTHETIC^{name}" if synthetic else f"{name}^",
        "PatientID": name,
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyInstanceUID": uid(*root, "study"),
        "StudyID": "1",
        "StudyDate": DATE,
        "StudyTime": TIME,
        "SeriesDate": DATE,
        "SeriesTime": TIME,
        "ContentDate": DATE,
        "ContentTime": TIME,
        "AcquisitionDate": DATE,
        "AcquisitionTime": TIME,
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "StudyDescription": "synthetic, no patient" if synthetic else "",
        "Manufacturer": "medvae3d",
        "ManufacturerModelName": str(record.get("bundle", "medvae3d"))[:64],
        "SoftwareVersions": __version__,
        "SyntheticData": "YES" if synthetic else "NO",
        "ContentQualification": "RESEARCH",
        "DerivationDescription": made if synthetic else "converted from NIfTI by medvae3d",
        "PositionReferenceIndicator": "",
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
        "AcquisitionNumber": "",
        "Laterality": "",
    }


# What the standard asks for in each kind of image and no synthetic one has: empty where it may be.
_SPECIFIC: dict[str, dict[str, Any]] = {
    "CT": {"KVP": "", "RescaleType": "HU", "PatientPosition": ""},
    "MR": {
        "ScanningSequence": "RM", "SequenceVariant": "NONE", "ScanOptions": "",
        "PatientPosition": "", "MRAcquisitionType": "3D",
        "RepetitionTime": "", "EchoTime": "", "EchoTrainLength": "",
    },
    "PT": {
        "Units": "GML", "SUVType": "BW", "CountsSource": "EMISSION", "DecayCorrection": "NONE",
        "SeriesType": ["STATIC", "IMAGE"], "CorrectedImage": "", "CollimatorType": "NONE",
        "FrameReferenceTime": "0", "ActualFrameDuration": "0",
        "RadiopharmaceuticalInformationSequence": [], "PatientOrientationCodeSequence": [],
        "PatientGantryRelationshipCodeSequence": [],
    },
}  # fmt: skip


def _image_type(modality: str, synthetic: bool) -> list[str]:
    second = "PRIMARY" if modality == "PT" else "SECONDARY"  # PET allows no other
    third = "AXIAL" if modality == "CT" else "OTHER"
    return ["DERIVED", second, third, *(["SYNTHETIC"] if synthetic else [])]


def _codes(name: str) -> tuple[Any, Any]:
    """Category and type of a segment."""
    from pydicom.sr.codedict import codes

    if any(word in name.lower() for word in LESION_WORDS):
        return codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion
    return codes.SCT.Tissue, codes.SCT.Tissue


def _dataset(content: Mapping[str, Any]) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    made: Any = Dataset()
    for keyword, value in content.items():
        setattr(made, keyword, value)
    made["PixelData"].VR = "OW"
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.ImplementationVersionName = "medvae3d"
    return made


def _save(dataset: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
