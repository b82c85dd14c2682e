"""Small data sets in the forms that are imported, written by other people's libraries."""

from __future__ import annotations

import io
import json
import locale
import tarfile

import nibabel as nib
import numpy as np
import SimpleITK as sitk

SHAPE = (6, 7, 5)
# An oblique grid, so that neither a transposed nor a mirrored axis goes unseen.
TURN = np.deg2rad(20)
DIRECTION = (np.cos(TURN), -np.sin(TURN), 0, np.sin(TURN), np.cos(TURN), 0, 0, 0, 1)
SPACING, ORIGIN = (0.7, 0.9, 2.5), (-12.0, 30.0, 7.0)


def scan(seed: int, *, mask: bool = False) -> sitk.Image:
    """A small image, or its mask with the labels 0, 1 and 4."""
    random = np.random.default_rng(seed)
    array = random.integers(-900, 900, SHAPE[::-1]).astype(np.int16)
    if mask:
        array = np.zeros(SHAPE[::-1], np.uint8)
        array[1:3, 2:5, 1 : 2 + seed % 3 + 1] = 1
        array[3, 5, 4] = 4
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(DIRECTION)
    return image


def put(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def describe(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_series(
    folder, *, patient="P7", places=(0, 2.5, 5, 7.5), seed=0, spacing=(0.7, 0.9), packed=False
):
    """Writes a DICOM series whose files are not named in the order of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(-900, 900, (len(places), 6, 8)).astype(np.int16)
    before = locale.setlocale(locale.LC_ALL)  # which ITK changes as it writes
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetUseCompression(packed)
    writer.SetCompressor("JPEG")  # the lossless one; JPEG 2000 needs larger images
    for k, place in enumerate(places):
        plane = sitk.GetImageFromArray(array[k][None])
        plane.SetSpacing((*spacing, 2.5))
        for tag, value in {
            "0008|0060": "CT", "0008|0018": f"1.2.3.{seed}.{k + 1}", "0010|0020": patient,
            "0020|000d": "1.2.3", "0020|000e": f"1.2.3.4.{seed}", "0020|0013": str(k),
            "0020|0032": f"-3\\4\\{place}", "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "-1024", "0028|1053": "1",
        }.items():  # fmt: skip
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{len(places) - k:03d}.dcm"))
        writer.Execute(plane)
    locale.setlocale(locale.LC_ALL, before)
    return array


def write_pairs(root, count=4, ending=".nrrd"):
    for i in range(count):
        put(root / f"case{i}_ct{ending}", scan(i))
        put(root / f"case{i}_mask{ending}", scan(i, mask=True))


def write_bids(root, count=2):
    describe(root / "dataset_description.json", Name="heads", BIDSVersion="1.9.0", License="CC0")
    for i in range(1, count + 1):
        put(root / f"sub-{i:02d}/anat/sub-{i:02d}_T1w.nii.gz", scan(i))
        mask = f"derivatives/seg/sub-{i:02d}/anat/sub-{i:02d}_desc-lesion_mask.nii.gz"
        put(root / mask, scan(i, mask=True))


def write_nnunet(root, count=2, ending=".nii.gz", **changed):
    content = {
        "channel_names": {"0": "T1w", "1": "FLAIR"},
        "labels": {"background": 0, "lesion": 1, "core": 4},
        "numTraining": count,
        "file_ending": ending,
    }
    describe(root / "dataset.json", **content | changed)
    for i in range(count):
        for channel in range(2):
            put(root / f"imagesTr/c_{i}_{channel:04d}{ending}", scan(10 * i + channel))
        put(root / f"labelsTr/c_{i}{ending}", scan(i, mask=True))
    put(root / f"imagesTs/t_0_0000{ending}", scan(90))
    put(root / f"imagesTs/t_0_0001{ending}", scan(91))


def write_msd(root, count=2, **changed):
    pairs = [{"image": f"./imagesTr/m_{i}.nii.gz", "label": f"./labelsTr/m_{i}.nii.gz"}
             for i in range(count)]  # fmt: skip
    content = {
        "name": "Small", "modality": {"0": "FLAIR", "1": "T1w"}, "licence": "CC-BY-SA 4.0",
        "labels": {"0": "background", "1": "edema", "4": "core"}, "training": pairs, "test": [],
    }  # fmt: skip
    describe(root / "dataset.json", **content | changed)
    for i in range(count):
        put(root / f"imagesTr/m_{i}.nii.gz", sitk.JoinSeries([scan(10 * i), scan(10 * i + 1)]))
        put(root / f"labelsTr/m_{i}.nii.gz", scan(i, mask=True))


def write_list(root, count=2, **changed):
    entries = [{"image": [f"i/{i}_t1.nrrd", f"i/{i}_t2.mha"], "label": f"m/{i}.nii.gz",
                "subject": f"p{i}", "fold": i} for i in range(count + 2)]  # fmt: skip
    describe(root / "cases.json", **{"name": "mine", "channels": ["t1", "t2"],
             "labels": {"0": "background", "1": "lesion", "4": "core"},
             "training": entries[:count], "validation": entries[count : count + 1],
             "test": entries[count + 1 :]} | changed)  # fmt: skip
    for i in range(count + 2):
        put(root / f"i/{i}_t1.nrrd", scan(10 * i))
        put(root / f"i/{i}_t2.mha", scan(10 * i + 1))
        put(root / f"m/{i}.nii.gz", scan(i, mask=True))


def write_shards(root, count=3, extra=()):
    """Shards as their own library writes them: grouped by the name up to the first dot."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        put(root / "scratch.nii.gz", scan(i))
        image = (root / "scratch.nii.gz").read_bytes()
        put(root / "scratch.nii.gz", scan(i, mask=True))
        members = {
            f"c{i}.ct.nii.gz": image,
            f"c{i}.seg.nii.gz": (root / "scratch.nii.gz").read_bytes(),
        }
        members |= {f"c{i}.json": json.dumps({"subject": f"p{i // 2}"}).encode()}
        (root / "scratch.nii.gz").unlink()
        with tarfile.open(root / f"{i // 2:03d}.tar", "a") as archive:
            for name, content in {**members, **dict(extra)}.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


WRITERS = {"pairs": write_pairs, "bids": write_bids, "nnunet": write_nnunet, "msd": write_msd,
           "webdataset": write_shards, "list": write_list}  # fmt: skip


def require_same(path, image):
    """Compares a file with a SimpleITK image, through SimpleITK and through nibabel."""
    there = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(there), sitk.GetArrayFromImage(image))
    seen = nib.load(path)
    assert np.array_equal(np.asarray(seen.dataobj).T, sitk.GetArrayFromImage(image))
    for corner in np.ndindex(2, 2, 2):
        index = [int(c * (n - 1)) for c, n in zip(corner, image.GetSize(), strict=True)]
        place = np.array(image.TransformIndexToPhysicalPoint(index))
        assert np.allclose(there.TransformIndexToPhysicalPoint(index), place, atol=1e-3)
        assert np.allclose(seen.affine @ [*index, 1], [*(place * [-1, -1, 1]), 1], atol=1e-3)
