"""Hostile DICOM series, NRRD and MetaImage files, written byte by byte: ``make_sources.py FOLDER``.

Each is a data set of its own that `data import` is given. Everything is the same on every run.
"""

from __future__ import annotations

import gzip
import os
import random
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

SIDE = 4
CT, SEGMENTATION = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4"
PLAIN, JPEG, JPEG_2000, HT_J2K = (
    "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.201",
)  # fmt: skip
LONG = {"OB", "OW", "SQ", "UN", "UT"}
Elements = Mapping[int, "tuple[str, bytes] | None"]


def element(tag: int, kind: str, value: bytes, length: int | None = None) -> bytes:
    """An element of DICOM, explicit and little endian; its length may be a lie."""
    value += b"\0" * (len(value) % 2)
    said = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind.encode()
    head += b"\0\0" + struct.pack("<I", said) if kind in LONG else struct.pack("<H", said & 0xFFFF)
    return head + value


def pixels(seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(-900, 900, (SIDE, SIDE)).astype("<i2").tobytes()


def plane(
    number: int, changes: Elements | None = None, syntax: str = PLAIN, sop: str = CT
) -> bytes:
    """One slice of a CT; elements may be replaced or, by ``None``, left out."""
    short = struct.Struct("<H").pack
    elements: dict[int, tuple[str, bytes] | None] = {
        0x0008_0016: ("UI", sop.encode()),
        0x0008_0018: ("UI", f"1.2.3.4.{number + 1}".encode()),
        0x0008_0060: ("CS", b"CT"),
        0x0010_0020: ("LO", b"P1"),
        0x0020_000D: ("UI", b"1.2.3"),
        0x0020_000E: ("UI", b"1.2.3.4"),
        0x0020_0013: ("IS", str(number).encode()),
        0x0020_0032: ("DS", f"-3\\4\\{2.5 * number}".encode()),
        0x0020_0037: ("DS", b"1\\0\\0\\0\\1\\0"),
        0x0028_0002: ("US", short(1)),
        0x0028_0004: ("CS", b"MONOCHROME2"),
        0x0028_0010: ("US", short(SIDE)),
        0x0028_0011: ("US", short(SIDE)),
        0x0028_0030: ("DS", b"2\\2"),
        0x0028_0100: ("US", short(16)),
        0x0028_0101: ("US", short(16)),
        0x0028_0102: ("US", short(15)),
        0x0028_0103: ("US", short(1)),
        0x0028_1052: ("DS", b"0"),
        0x0028_1053: ("DS", b"1"),
        0x7FE0_0010: ("OW", pixels(number)),
    }
    elements.update(changes or {})
    body = b"".join(element(tag, *each) for tag, each in sorted(elements.items()) if each)
    meta = element(0x0002_0001, "OB", b"\0\1") + element(0x0002_0002, "UI", sop.encode())
    meta += element(0x0002_0003, "UI", f"1.2.3.4.{number + 1}".encode())
    meta += element(0x0002_0010, "UI", syntax.encode())
    return (
        bytes(128)
        + b"DICM"
        + element(0x0002_0000, "UL", struct.pack("<I", len(meta)))
        + meta
        + body
    )


def nested(depth: int) -> bytes:
    """Sequences in sequences, without ends, as many as wanted."""
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    head = struct.pack("<HH", 0x0040, 0xA730) + b"SQ\0\0" + struct.pack("<I", 0xFFFFFFFF)
    return (head + item) * depth


def fragments(content: bytes, length: int | None = None) -> bytes:
    """Pixels as fragments of an encoder, with an empty table of offsets."""
    said = len(content) if length is None else length
    return (
        struct.pack("<HH", 0x7FE0, 0x0010) + b"OB\0\0" + struct.pack("<I", 0xFFFFFFFF)
        + struct.pack("<HHI", 0xFFFE, 0xE000, 0)
        + struct.pack("<HHI", 0xFFFE, 0xE000, said) + content
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )  # fmt: skip


def series(last: bytes | None, count: int = 3) -> dict[str, bytes]:
    """Good slices, then one that is not."""
    files = {f"{number}.dcm": plane(number) for number in range(count)}
    return files if last is None else files | {f"{count}.dcm": last}


def dicom() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Name and files of series that are no volume, or not one that can be decoded."""
    good = plane(3)
    for count in (132, 140, 200, 300, len(good) - 8, len(good) - 1):
        yield f"cut_{count}", series(good[:count])
    noise = random.Random(0)
    yield "noise", series(bytes(128) + b"DICM" + noise.randbytes(400))
    for number in range(8):
        stirred = bytearray(good)
        for _ in range(40):
            stirred[noise.randrange(270, len(good))] = noise.randrange(256)
        yield f"stirred_{number}", series(bytes(stirred))
    short = struct.Struct("<H").pack
    for name, changes in {
        "rows_0": {0x0028_0010: ("US", short(0))},
        "rows_65535": {0x0028_0010: ("US", short(65535))},
        "both_65535": {0x0028_0010: ("US", short(65535)), 0x0028_0011: ("US", short(65535))},
        "frames": {0x0028_0008: ("IS", b"1000000000")},
        "frames_negative": {0x0028_0008: ("IS", b"-4")},
        "frames_text": {0x0028_0008: ("IS", b"many")},
        "no_place": {0x0020_0032: None},
        "no_direction": {0x0020_0037: None},
        "no_spacing": {0x0028_0030: None},
        "no_rows": {0x0028_0010: None},
        "no_pixels": {0x7FE0_0010: None},
        "few_pixels": {0x7FE0_0010: ("OW", b"\0\0")},
        "place_nan": {0x0020_0032: ("DS", b"nan\\4\\7.5")},
        "place_text": {0x0020_0032: ("DS", b"here\\4\\7.5")},
        "place_short": {0x0020_0032: ("DS", b"7.5")},
        "place_far": {0x0020_0032: ("DS", b"-3\\4\\1e300")},
        "place_same": {0x0020_0032: ("DS", b"-3\\4\\5")},
        "place_gap": {0x0020_0032: ("DS", b"-3\\4\\50")},
        "place_aside": {0x0020_0032: ("DS", b"90\\4\\7.5")},
        "direction_zero": {0x0020_0037: ("DS", b"0\\0\\0\\0\\0\\0")},
        "direction_nan": {0x0020_0037: ("DS", b"nan\\0\\0\\0\\1\\0")},
        "direction_other": {0x0020_0037: ("DS", b"0\\1\\0\\1\\0\\0")},
        "spacing_zero": {0x0028_0030: ("DS", b"0\\0")},
        "spacing_negative": {0x0028_0030: ("DS", b"-2\\2")},
        "spacing_huge": {0x0028_0030: ("DS", b"1e30\\1e30")},
        "spacing_text": {0x0028_0030: ("DS", b"wide")},
        "bits_1": {0x0028_0100: ("US", short(1))},
        "bits_0": {0x0028_0100: ("US", short(0))},
        "bits_65535": {0x0028_0100: ("US", short(65535))},
        "samples_3": {0x0028_0002: ("US", short(3)), 0x0028_0004: ("CS", b"RGB")},
        "samples_0": {0x0028_0002: ("US", short(0))},
        "slope_nan": {0x0028_1053: ("DS", b"nan")},
        "slope_huge": {0x0028_1053: ("DS", b"1e300")},
        "other_patient": {0x0010_0020: ("LO", b"P2")},
    }.items():
        yield name, series(plane(3, changes))
    yield "deep", series(plane(3, {0x7FE0_0010: None}) + nested(20_000))
    # GDCM takes further bytes for the length of a kind that it does not know: here 775 MB.
    yield "unknown_kind", series(good.replace(b"\2\0\2\0UI", b"\2\0\2\0UH"))
    yield "long_value", series(good[:-40] + element(0x7FE0_0010, "OW", b"\0\0", 0xFFFFFFF0))
    yield "long_length", series(good + element(0x7FE0_0011, "UN", b"", 0xFFFFFFFE))
    for name, syntax in (("jpeg", JPEG), ("jpeg_2000", JPEG_2000), ("unknown", "1.2.3.4.5.6")):
        body = plane(3, {0x7FE0_0010: None}, syntax)
        yield f"{name}_garbage", series(body + fragments(noise.randbytes(64)))
        yield f"{name}_empty", series(body + fragments(b""))
        yield f"{name}_long", series(body + fragments(b"\xff\xd8\xff", 0x7FFFFFFF))
    yield "ht_j2k", series(plane(3, {0x7FE0_0010: None}, HT_J2K) + fragments(b"\xff\x4f\xff\x51"))
    yield "segmentation_garbage", series(plane(3, {}, PLAIN, SEGMENTATION))
    yield "segmentation_cut", series(plane(3, {}, PLAIN, SEGMENTATION)[:400])
    yield "one_slice", series(None, 1)
    yield "no_slice", {"a.dcm": b""}
    yield "only_marks", {f"{number}.dcm": bytes(128) + b"DICM" for number in range(3)}


def nrrd(voxels: bytes | None = None, **fields: object) -> bytes:
    """An NRRD file; fields may be replaced or, by ``None``, left out."""
    said: dict[str, object] = {
        "type": "short", "dimension": 3, "space": "left-posterior-superior",
        "sizes": "4 4 4", "space directions": "(2,0,0) (0,2,0) (0,0,2)",
        "kinds": "domain domain domain", "endian": "little", "encoding": "raw",
        "space origin": "(0,0,0)",
    }  # fmt: skip
    said |= {key.replace("_", " "): value for key, value in fields.items()}
    lines = [f"{key}: {value}" for key, value in said.items() if value is not None]
    data = np.arange(SIDE**3, dtype="<i2").tobytes() if voxels is None else voxels
    return ("NRRD0004\n" + "\n".join(lines) + "\n\n").encode() + data


def meta(voxels: bytes | None = None, **fields: object) -> bytes:
    """A MetaImage file, likewise."""
    said: dict[str, object] = {
        "ObjectType": "Image", "NDims": 3, "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0",
        "ElementSpacing": "2 2 2", "DimSize": "4 4 4", "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }  # fmt: skip
    data = np.arange(SIDE**3, dtype="<i2").tobytes() if voxels is None else voxels
    said |= fields
    said["ElementDataFile"] = said.pop("ElementDataFile")  # ends a header
    lines = [f"{key} = {value}" for key, value in said.items() if value is not None]
    return ("\n".join(lines) + "\n").encode() + data


def itk() -> Iterator[tuple[str, bytes]]:
    """Name and content of NRRD and MetaImage files that are no volume, or not one to be used."""
    for name, content in (("nrrd", nrrd()), ("mha", meta())):
        for count in (0, 4, 30, len(content) - 128, len(content) - 1):
            yield f"cut_{count}.{name}", content[:count]
        yield f"zeros.{name}", bytes(500)
        noise = random.Random(0)
        yield f"noise.{name}", noise.randbytes(500)
        yield f"line.{name}", content[:20] + b"x" * 2_000_000 + content[20:]
    sizes = ("30000 30000 30000", "-4 4 4", "0 4 4", "4 4", "4 4 4 4 4", "9" * 40, "four", "")
    for number, size in enumerate(sizes):
        yield f"sizes_{number}.nrrd", nrrd(sizes=size)
        yield f"sizes_{number}.mha", meta(DimSize=size)
    for number, axes in enumerate((-1, 0, 2, 7, 1000, "many")):
        yield f"axes_{number}.nrrd", nrrd(dimension=axes)
        yield f"axes_{number}.mha", meta(NDims=axes)
    for number, place in enumerate(("nan", "inf", "0", "1e30")):
        yield f"spacing_{number}.nrrd", nrrd(space_directions=f"({place},0,0) (0,2,0) (0,0,2)")
        yield f"spacing_{number}.mha", meta(ElementSpacing=f"{place} 2 2")
    for number, place in enumerate(("nan", "inf", "1e30")):
        yield f"origin_{number}.nrrd", nrrd(space_origin=f"({place},0,0)")
        yield f"origin_{number}.mha", meta(Offset=f"{place} 0 0")
    yield "flat.nrrd", nrrd(space_directions="(2,0,0) (2,0,0) (0,0,2)")
    yield "flat.mha", meta(TransformMatrix="1 0 0 1 0 0 0 0 1")
    yield "zero_matrix.mha", meta(TransformMatrix="0 0 0 0 0 0 0 0 0")
    yield "kinds.nrrd", nrrd(kinds="vector domain domain", sizes="3 4 4")
    for kind in ("block", "nothing", ""):
        yield f"type_{kind}.nrrd", nrrd(type=kind)
    for kind in ("MET_NONE", "MET_OTHER", "nothing"):
        yield f"type_{kind}.mha", meta(ElementType=kind)
    yield "double_huge.nrrd", nrrd(np.full(SIDE**3, 1e300).tobytes(), type="double")
    yield "double_huge.mha", meta(np.full(SIDE**3, 1e300).tobytes(), ElementType="MET_DOUBLE")
    yield "channels.mha", meta(ElementNumberOfChannels=1_000_000)
    packed = gzip.compress(np.arange(SIDE**3, dtype="<i2").tobytes(), mtime=0)
    for name, content in (
        ("cut", packed[:20]),
        ("garbage", b"\x1f\x8b" + bytes(60)),
        ("none", b""),
    ):
        yield f"gzip_{name}.nrrd", nrrd(content, encoding="gzip")
        yield f"zlib_{name}.mha", meta(content, CompressedData="True", CompressedDataSize=10**12)
    yield "encoding.nrrd", nrrd(encoding="magic")
    # No voxels here, but in a file elsewhere, or in very many.
    for number, name in enumerate(
        (
            "/etc/passwd",
            "../../../../etc/passwd",
            "/dev/zero",
            "pipe",
            "LIST",
            "x%d.raw 1 9999999 1",
        )
    ):
        yield f"elsewhere_{number}.nrrd", nrrd(b"", data_file=name)
        yield f"elsewhere_{number}.mha", meta(b"", ElementDataFile=name)


def make_dicom(folder: Path) -> list[Path]:
    """Writes all series, each in a folder of its own."""
    made = []
    for name, files in dicom():
        made.append(folder / name)
        made[-1].mkdir(parents=True)
        for file, content in files.items():
            (made[-1] / file).write_bytes(content)
    for name, target in (("loop", "loop"), ("dangling", "nowhere"), ("device", "/dev/zero")):
        made.append(folder / f"link_{name}")
        made[-1].mkdir()
        os.symlink(target, made[-1] / "loop" if name == "loop" else made[-1] / "0.dcm")
    made.append(folder / "pipe")
    made[-1].mkdir()
    os.mkfifo(made[-1] / "0.dcm")
    return made


def make_itk(folder: Path) -> list[Path]:
    """Writes all NRRD and MetaImage files, each in a folder of its own."""
    made = []
    for name, content in itk():
        made.append(folder / name.replace(".", "_") / name)
        made[-1].parent.mkdir(parents=True)
        made[-1].write_bytes(content)
        if b"pipe" in content:
            os.mkfifo(made[-1].parent / "pipe")
    return made


if __name__ == "__main__":
    root = Path(sys.argv[1])
    print(f"{len(make_dicom(root / 'dicom')) + len(make_itk(root / 'itk'))} data sets")
