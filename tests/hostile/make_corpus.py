"""Writes malformed and hostile files, each a few hundred bytes: ``make_corpus.py FOLDER``.

Volumes go to ``volumes/``, data lists of other forms than the allowed ones to ``lists/``.
"""

from __future__ import annotations

import gzip
import json
import os
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
          "vox_offset": (108, "f"), "qform_code": (252, "h"), "srow": (280, "12f"),
          "magic": (344, "4s"), "sizeof_hdr": (0, "i")}  # fmt: skip


def whole() -> bytes:
    """A volume with which nothing is wrong."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    voxels = np.arange(SIDE**3, dtype=np.int16).reshape([SIDE] * 3)
    return nib.Nifti1Image(voxels, affine).to_bytes()


def changed(field: str, *values: object) -> bytes:
    """The same with one field of its header replaced."""
    content = bytearray(whole())
    offset, form = FIELDS[field]
    struct.pack_into("<" + form, content, offset, *values)
    return bytes(content)


def volumes() -> Iterator[tuple[str, bytes]]:  # noqa: C901
    """Name and content of files that are no volume, or not one that can be used."""
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
    for name, text in (("png", b"\x89PNG\r\n"), ("zip", b"PK\x03\x04"), ("html", b"<html>"),
                       ("zeros", bytes(500)), ("ones", b"\xff" * 500)):  # fmt: skip
        yield f"is_{name}.nii", text
        yield f"is_{name}.nii.gz", gzip.compress(text, mtime=0)
    claims = (30000, 32767, -1, 0, -32768)
    for axes, claim in product((1, 2, 3), claims):
        dim = [3, *[claim] * axes, *[SIDE] * (3 - axes), 1, 1, 1, 1]
        bomb = changed("dim", *dim)
        yield f"claims_{axes}x{claim}.nii", bomb
        yield f"claims_{axes}x{claim}.nii.gz", gzip.compress(bomb, mtime=0)
    for rank in (-1, 0, 1, 2, 4, 5, 6, 7, 8, 32767):
        yield f"rank_{rank}.nii", changed("dim", rank, *[SIDE] * 3, 3, 3, 3, 3)
    for code in (0, 1, 32, 128, 1536, 1792, 2048, 2304, 7, 999, -1):
        yield f"type_{code}.nii", changed("datatype", code)
    for number in ("nan", "inf", "-inf", "0"):
        for axis in range(3):
            row = [2.0, 0, 0, 0, 0, 2.0, 0, 0, 0, 0, 2.0, 0]
            row[5 * axis] = float(number)
            yield f"affine_{number}_{axis}.nii", changed("srow", *row)
            row = [2.0, 0, 0, 0, 0, 2.0, 0, 0, 0, 0, 2.0, 0]
            if number != "0":
                row[4 * axis + 3] = float(number)
                yield f"origin_{number}_{axis}.nii", changed("srow", *row)
    for number in ("nan", "inf", "-1e30", "1e30", "-500", "100"):
        yield f"offset_{number}.nii", changed("vox_offset", float(number))
    for magic in (b"xxxx", b"\0\0\0\0", b"ni1\0", b"N+1\0", b"n+9\0"):
        yield f"magic_{magic.hex()}.nii", changed("magic", magic)
    for size in (0, 347, 349, 540, -1):
        yield f"header_{size}.nii", changed("sizeof_hdr", size)


def lists() -> Iterator[tuple[str, bytes]]:
    """Name and content of files that are no data list."""
    deep = 100_000
    texts = {
        "empty": b"", "space": b" \n", "open": b"{", "comma": b'{"training": [1,]}',
        "bytes": b"\xff\xfe\x00", "latin": '{"training": ["\xe9.nii"]}'.encode("latin-1"),
        "deep_list": b"[" * deep + b"]" * deep, "deep_object": b'{"training":' * deep,
        "deep_inside": b'{"training": ' + b"[" * deep + b"]" * deep + b"}",
        "nul": b'{"training": [{"image": "a\\u0000b.nii", "label": "c.nii"}]}',
        "surrogate": b'{"training": [{"image": "\\ud800.nii", "label": "c.nii"}]}',
        "bignum": b'{"training": ' + b"9" * 5000 + b"}",
    }  # fmt: skip
    for name, text in texts.items():
        yield f"{name}.json", text
    odd = [None, True, 0, -1.5, "text", "", [[], []], {}, [[]], [None], [0], [True], [""], [{}],
           ["/"], ["."], [".."], {"image": "a.nii"}]  # fmt: skip
    for number, value in enumerate(odd):
        yield f"whole_{number}.json", json.dumps(value).encode()
        yield f"training_{number}.json", json.dumps({"training": value}).encode()
        for key in ("image", "label"):
            case = {"image": "a.nii", "label": "b.nii", key: value}
            yield f"{key}_{number}.json", json.dumps({"training": [case]}).encode()
    for name in ("/etc/passwd", "../../../etc/passwd", "/dev/zero", "a" * 5000 + ".nii"):
        case = {"training": [{"image": name, "label": name}]}
        yield f"path_{len(name)}.json", json.dumps(case).encode()


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
    names = []
    for name, content in volumes():
        (folder / "volumes" / name).write_bytes(content)
        names.append(name)
    os.symlink("loop.nii", folder / "volumes" / "loop.nii")
    os.symlink("nowhere.nii", folder / "volumes" / "dangling.nii")
    (folder / "volumes" / "folder.nii").mkdir()
    for name in (*names, "loop.nii", "dangling.nii", "folder.nii"):
        case = {"image": f"volumes/{name}", "label": f"volumes/{name}"}
        made.append(folder / f"{name}.json")
        made[-1].write_text(json.dumps({"training": [case]}))
    return made


if __name__ == "__main__":
    print(f"{len(make(Path(sys.argv[1])))} files")
