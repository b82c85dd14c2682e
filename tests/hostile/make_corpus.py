"""Writes malformed and hostile files, each a few hundred bytes: ``make_corpus.py FOLDER``.

Volumes go to ``volumes/``, each with a data list that names it, data lists of other forms than the
allowed ones to ``lists/``. Everything is the same on every run.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import struct
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np

SIDE = 4
# Offsets of fields in a NIfTI-1 header, with their struct format.
FIELDS = {"dim": (40, "8h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim": (76, "8f"),
          "vox_offset": (108, "f"), "scl_slope": (112, "f"), "scl_inter": (116, "f"),
          "xyzt_units": (123, "b"), "qform_code": (252, "h"), "sform_code": (254, "h"),
          "quatern": (256, "3f"), "srow": (280, "12f"), "magic": (344, "4s"),
          "sizeof_hdr": (0, "i")}  # fmt: skip
ROW = [2.0, 0, 0, 0, 0, 2.0, 0, 0, 0, 0, 2.0, 0]
NOT_FINITE = ("nan", "inf", "-inf")


def voxels(dtype: str = "i2") -> np.ndarray:
    """Every voxel another value, so that none can stand in for its neighbour."""
    return np.arange(SIDE**3).reshape([SIDE] * 3).astype(dtype)


def affine() -> np.ndarray:
    return np.diag([2.0, 2.0, 2.0, 1.0])


def whole(array: np.ndarray | None = None) -> bytes:
    """A volume with which nothing is wrong."""
    return nib.Nifti1Image(voxels() if array is None else array, affine()).to_bytes()


def changed(**fields: object) -> bytes:
    """The same with some fields of its header replaced."""
    content = bytearray(whole())
    for field, values in fields.items():
        offset, form = FIELDS[field]
        listed = values if isinstance(values, (list, tuple)) else [values]
        struct.pack_into("<" + form, content, offset, *listed)
    return bytes(content)


def nifti2(magic: bytes = b"n+2\0\r\n\x1a\n", endian: str = "<") -> bytes:
    image = nib.Nifti2Image(voxels(), affine(), nib.Nifti2Header(endianness=endian))
    content = bytearray(image.to_bytes())
    content[4:12] = magic
    return bytes(content)


def swapped() -> bytes:
    """A whole volume, with all its numbers in the other order of bytes."""
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    return nib.Nifti1Image(voxels().astype(">i2"), affine(), header).to_bytes()


def volumes() -> Iterator[tuple[str, bytes]]:
    """Name and content of files that are no volume, or not one that can be used."""
    yield from _cut()
    yield from _shapes()
    yield from _places()
    yield from _values()


def _cut() -> Iterator[tuple[str, bytes]]:
    good = whole()
    packed = gzip.compress(good, mtime=0)
    for count in (0, 1, 10, 100, 347, 348, 352, 360, len(good) - 1):
        yield f"cut_{count}.nii", good[:count]
    for count in (0, 1, 2, 5, 10, 20, 60, len(packed) - 9, len(packed) - 4, len(packed) - 1):
        yield f"cut_{count}.nii.gz", packed[:count]
    for place in (12, 20, 40, len(packed) - 6, len(packed) - 2):
        yield f"flipped_{place}.nii.gz", packed[:place] + b"\xa5\x5a" + packed[place + 2 :]
    yield "plain.nii.gz", good
    yield "zipped.nii", packed
    yield "twice.nii.gz", gzip.compress(packed, mtime=0)
    yield "garbage_after.nii.gz", packed + b"garbage"
    # 32 MB of nothing behind the last voxel, or before the first.
    yield "endless.nii.gz", packed + gzip.compress(bytes(1 << 25), mtime=0)
    yield "late.nii.gz", gzip.compress(changed(vox_offset=float(1 << 28)) + bytes(1 << 20), mtime=0)
    for name, text in (("png", b"\x89PNG\r\n"), ("zip", b"PK\x03\x04"), ("html", b"<html>"),
                       ("zeros", bytes(500)), ("ones", b"\xff" * 500)):  # fmt: skip
        yield f"is_{name}.nii", text
        yield f"is_{name}.nii.gz", gzip.compress(text, mtime=0)
    noise = random.Random(0)
    for number in range(8):
        yield f"noise_{number}.nii", noise.randbytes(600)
        content = bytearray(good)
        for _ in range(60):
            content[noise.randrange(4, 348)] = noise.randrange(256)
        # Whatever else became of it, so many axes are none.
        struct.pack_into("<h", content, 40, 9)
        yield f"stirred_{number}.nii", bytes(content)


def _shapes() -> Iterator[tuple[str, bytes]]:
    for axes, claim in product((1, 2, 3), (30000, 32767, -1, 0, -32768)):
        dim = [3, *[claim] * axes, *[SIDE] * (3 - axes), 1, 1, 1, 1]
        bomb = changed(dim=dim)
        yield f"claims_{axes}x{claim}.nii", bomb
        yield f"claims_{axes}x{claim}.nii.gz", gzip.compress(bomb, mtime=0)
    # As much as a file of its size might hold, and more than there is to spare.
    bomb = gzip.compress(changed(dim=[3, 2000, 1000, 300, 1, 1, 1, 1]), mtime=0)
    yield "memory.nii.gz", bomb + random.Random(1).randbytes(1_200_000)
    for rank in (-1, 0, 1, 2, 8, 32767):
        yield f"rank_{rank}.nii", changed(dim=[rank, *[SIDE] * 3, 3, 3, 3, 3])
    for shape in ((16, 4), (16, 4, 1), (2, 2, 2, 2, 4), (2,) * 6, (2, 2, 2, 2, 2, 2, 1),
                  (4, 4, 4, 2)):  # fmt: skip
        array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
        yield f"axes_{'x'.join(map(str, shape))}.nii", whole(array)
    for code in (0, 1, 32, 128, 1536, 1792, 2048, 2304, 7, 999, -1):
        yield f"type_{code}.nii", changed(datatype=code)
    colours = [("R", "u1"), ("G", "u1"), ("B", "u1")]
    yield "rgb.nii", whole(np.zeros([SIDE] * 3, colours))
    yield "rgba.nii", whole(np.zeros([SIDE] * 3, [*colours, ("A", "u1")]))
    for kind in ("c8", "c16"):
        yield f"complex_{kind}.nii", whole(voxels(kind))


def _places() -> Iterator[tuple[str, bytes]]:
    for number in (*NOT_FINITE, "0", "1e30", "1e-30"):
        for axis in range(3):
            row = list(ROW)
            row[5 * axis] = float(number)
            yield f"affine_{number}_{axis}.nii", changed(srow=row)
            if number not in ("0", "1e-30"):
                row = list(ROW)
                row[4 * axis + 3] = float(number)
                yield f"origin_{number}_{axis}.nii", changed(srow=row)
            size = [1, 2.0, 2.0, 2.0, 0, 0, 0, 0]
            size[1 + axis] = float(number)
            if number not in ("1e30", "1e-30"):  # the rows say where voxels lie, not these
                yield f"pixdim_{number}_{axis}.nii", changed(pixdim=size)
    yield "pixdim_negative.nii", changed(pixdim=[1, 2.0, -2.0, 2.0, 0, 0, 0, 0])
    yield "flat.nii", changed(srow=[1, 0, 0, 0, 1, 1e-9, 0, 0, 0, 0, 1, 0])
    for name, quaternion in (("long", (2, 2, 2)), ("nan", (np.nan, 0, 0))):
        fields = {"sform_code": 0, "qform_code": 1, "quatern": quaternion}
        yield f"quaternion_{name}.nii", changed(**fields)
    for unit in (1, 3):
        yield f"unit_{unit}.nii", changed(xyzt_units=unit)
    for number in (*NOT_FINITE, "-1e30", "1e30", "-500", "100", "0", "352.5"):
        yield f"offset_{number}.nii", changed(vox_offset=float(number))
    for magic in (b"xxxx", b"\0\0\0\0", b"ni1\0", b"N+1\0", b"n+9\0", b"n+2\0"):
        yield f"magic_{magic.hex()}.nii", changed(magic=magic)
    yield "magic_of_1_in_2.nii", nifti2(b"n+1\0\r\n\x1a\n")
    for size in (0, 347, 349, 540, -1, struct.unpack(">i", struct.pack("<i", 348))[0]):
        yield f"header_{size}.nii", changed(sizeof_hdr=size)


def _values() -> Iterator[tuple[str, bytes]]:
    for slope in ("inf", "-inf", "1e37", "-3e38"):
        yield f"slope_{slope}.nii", changed(scl_slope=float(slope), scl_inter=0.0)
    for inter in (*NOT_FINITE, "3e38"):
        yield f"inter_{inter}.nii", changed(scl_slope=1.0, scl_inter=float(inter))
    yield "beyond_float32.nii", whole(voxels("f8") * 1e300)


def odd_volumes() -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Name, content and values of unusual files that are to be read right."""
    v = voxels("f4")
    yield "big_endian.nii", swapped(), v
    yield "big_endian.nii.gz", gzip.compress(swapped(), mtime=0), v
    yield "nifti2.nii", nifti2(), v
    yield "nifti2_big_endian.nii", nifti2(endian=">"), v
    yield "slope_negative.nii", changed(scl_slope=-0.5, scl_inter=3.0), 3 - 0.5 * v
    yield "slope_nan.nii", changed(scl_slope=float("nan"), scl_inter=float("nan")), v
    yield "slope_zero.nii", changed(scl_slope=0.0, scl_inter=7.0), v
    yield "bitpix_wrong.nii", changed(bitpix=99), v
    yield "no_extension.nii", changed(vox_offset=348.0)[:348] + whole()[352:], v
    wide = changed(vox_offset=400.0)
    yield "extension.nii", wide[:352] + bytes(48) + wide[352:], v
    yield "trailing.nii.gz", gzip.compress(whole() + bytes(1000), mtime=0), v
    yield "parts.nii.gz", b"".join(gzip.compress(each) for each in (whole()[:99], whole()[99:])), v
    yield "one_channel.nii", whole(voxels()[..., None]), v
    yield "umlaut_\N{LATIN SMALL LETTER U WITH DIAERESIS}.nii", whole(), v


def lists() -> Iterator[tuple[str, bytes]]:
    """Name and content of files that are no data list."""
    deep = 100_000
    case = b'{"image": "a.nii", "label": "b.nii"}'
    texts = {
        "empty": b"", "space": b" \n", "open": b"{", "comma": b'{"training": [1,]}',
        "bytes": b"\xff\xfe\x00", "latin": '{"training": ["\xe9.nii"]}'.encode("latin-1"),
        "wide": '{"training": ["a.nii"]}'.encode("utf-16"),
        "deep_list": b"[" * deep + b"]" * deep, "deep_object": b'{"training":' * deep,
        "deep_inside": b'{"training": ' + b"[" * deep + b"]" * deep + b"}",
        "deep_extra": b'{"training": [{"image": "a.nii", "x": ' + b"[" * 700 + b"]" * 700 + b"}]}",
        "nul": b'{"training": [{"image": "a\\u0000b.nii", "label": "c.nii"}]}',
        "surrogate": b'{"training": [{"image": "\\ud800.nii", "label": "c.nii"}]}',
        "not_utf8": b'{"training": [{"image": "\\udce9.nii", "label": "c.nii"}]}',
        "escape": b'{"training": [{"image": "\\u001b[2Ja.nii", "label": "c.nii"}]}',
        "bignum": b'{"training": ' + b"9" * 5000 + b"}",
        "empty_training": b'{"training": []}',
        "empty_splits": b'{"training": [], "validation": [], "testing": []}',
        "twice": b'{"training": [' + case + b'], "training": [' + case + b"]}",
        "twice_inside": b'{"training": [{"image": "a.nii", "image": "b.nii"}]}',
        "twice_deep": b'{"training": [' + case + b'], "x": [{"y": {"z": 1, "z": 2}}]}',
    }  # fmt: skip
    for name, text in texts.items():
        yield f"{name}.json", text
    odd = [None, True, 0, -1.5, "text", "", [[], []], {}, [[]], [None], [0], [True], [""], [{}],
           ["/"], ["."], [".."], {"image": "a.nii"}]  # fmt: skip
    for number, value in enumerate(odd):
        yield f"whole_{number}.json", json.dumps(value).encode()
        yield f"training_{number}.json", json.dumps({"training": value}).encode()
        for key in ("image", "label", "subject"):
            entry = {"image": "a.nii", "label": "b.nii", key: value}
            yield f"{key}_{number}.json", json.dumps({"training": [entry]}).encode()
    for name in ("/etc/passwd", "../../../etc/passwd", "/dev/zero", "a" * 5000 + ".nii"):
        entry = {"image": name, "label": name}
        yield f"path_{len(name)}.json", json.dumps({"training": [entry]}).encode()


def list_of(name: str, count: int = 2) -> dict[str, list[dict[str, object]]]:
    """A list with a case of one file in every split, that no check of lists refuses."""
    return {
        split: [
            {
                "image": name,
                "label": name,
                "case": f"{split}_{number}",
                "subject": f"{split}_{number}",
                "class": "ab"[number % 2],
            }
            for number in range(count)
        ]
        for split in ("training", "validation", "testing")
    }


def make(folder: Path) -> list[Path]:
    """Writes all files; each volume also gets a data list that names it.

    Returns:
        The data lists, one for each malformed file.
    """
    made = []
    for part in ("volumes", "lists"):
        (folder / part).mkdir(parents=True)
    for name, content in lists():
        made.append(folder / "lists" / name)
        made[-1].write_bytes(content)
    os.mkfifo(folder / "lists" / "pipe.json")
    os.symlink("/dev/zero", folder / "lists" / "endless.json")
    os.symlink("loop.json", folder / "lists" / "loop.json")
    (folder / "lists" / "folder.json").mkdir()
    made += [folder / "lists" / f"{name}.json" for name in ("pipe", "endless", "loop", "folder")]
    names = []
    for name, content in volumes():
        (folder / "volumes" / name).write_bytes(content)
        names.append(name)
    os.symlink("loop.nii", folder / "volumes" / "loop.nii")
    os.symlink("nowhere.nii", folder / "volumes" / "dangling.nii")
    os.symlink("/dev/zero", folder / "volumes" / "device.nii")
    os.mkfifo(folder / "volumes" / "pipe.nii")
    (folder / "volumes" / "folder.nii").mkdir()
    names += [f"{name}.nii" for name in ("loop", "dangling", "device", "pipe", "folder")]
    for name in names:
        made.append(folder / f"{name}.json")
        made[-1].write_text(json.dumps(list_of(f"volumes/{name}")))
    return made


if __name__ == "__main__":
    print(f"{len(make(Path(sys.argv[1])))} files")
