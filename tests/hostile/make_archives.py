"""Tar files and files of weights that try to write elsewhere, run code or fill memory and disk."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from hostile.make_corpus import whole

GOOD = ("case.image.nii", "case.label.nii")


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _file(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def _special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def good_members(prefix: str = "") -> list[tuple[tarfile.TarInfo, bytes]]:
    return [_file(f"{prefix}{name}", whole()) for name in GOOD]


def escaping(outside: Path) -> Iterator[tuple[str, bytes]]:
    """Tar files with a case each whose names or links lead to ``outside``."""
    yield "dots.tar", _tar(*good_members("../../../../../../../.." + str(outside) + "/"))
    yield "absolute.tar", _tar(*good_members(f"{outside}/"))
    link = _special("sub", tarfile.SYMTYPE, str(outside))
    yield "link.tar", _tar(link, *good_members("sub/"))
    named = _special("case.image.nii", tarfile.SYMTYPE, str(outside / "stolen"))
    yield "link_of_that_name.tar", _tar(named, *good_members())
    hard = _special("other.image.nii", tarfile.LNKTYPE, "/etc/passwd")
    yield "hard_link.tar", _tar(hard, *good_members())
    for number, kind in enumerate((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)):
        yield f"device_{number}.tar", _tar(_special("b.image.nii", kind), *good_members())


def refused_tars() -> Iterator[tuple[str, bytes]]:
    """Tar files that are cut off, claim more than they are, or unpack to far more."""
    good = _tar(*good_members())
    for count in (0, 1, 511, 512, 600, 1024, 1700):
        yield f"cut_{count}.tar", good[:count]
    packed = gzip.compress(good, mtime=0)
    for count in (5, 20, len(packed) // 2, len(packed) - 9):
        yield f"cut_{count}.tar.gz", packed[:count]
    yield "text.tar", b"no archive" * 100
    yield "no_case.tar", _tar(_file("readme.txt", b"nothing"))
    yield "twice.tar", _tar(*good_members(), *good_members("sub/"))
    huge = _file("case.image.nii", whole())[0]
    huge.size = 1 << 40
    yield "claims.tar", huge.tobuf() + bytes(2048)
    negative = bytearray(_file("case.image.nii", whole())[0].tobuf())
    negative[124:136] = b"\xff" * 12
    yield "negative.tar", _summed(negative) + bytes(2048)
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        long = tarfile.TarInfo("x")
        long.type, long.size = kind, 1 << 38
        yield f"header_{kind.decode()}.tar", long.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    sparse = tarfile.TarInfo("case.image.nii")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 1 << 20
    yield "sparse.tar", sparse.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 21)
    yield (
        "empties.tar.gz",
        gzip.compress(
            b"".join(tarfile.TarInfo(f"{n}.txt").tobuf() for n in range(51_000)), 1, mtime=0
        ),
    )
    yield "bomb.tar.gz", bomb()


def bomb() -> bytes:
    """One member of 300 MB of zeros in a file of 0.3 MB."""
    info = tarfile.TarInfo("case.image.nii")
    info.size = 300_000_000
    head = gzip.compress(info.tobuf(), mtime=0)
    # The same compressed block over and over: parts of a stream follow each other.
    return head + gzip.compress(bytes(30_000_000), 9, mtime=0) * 10


def _summed(block: bytearray) -> bytes:
    """A header with the check sum that its content has."""
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block[:512]):06o}\0 ".encode()
    return bytes(block)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def weights(trace: Path, state: dict[str, torch.Tensor]) -> Iterator[tuple[str, bytes]]:
    """Files that are no weights; some would make the folder ``trace``."""

    def saved(content: object, **options: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer, **options)
        return buffer.getvalue()

    whole_file = saved(state)
    for count in (0, 1, 10, 100, len(whole_file) // 2, len(whole_file) - 10):
        yield f"cut_{count}.pt", whole_file[:count]
    yield "text.pt", b"no weights" * 50
    yield "pickle.pt", pickle.dumps({"weight": Trap(trace)})
    yield "trap.pt", saved({"weight": Trap(trace)})
    yield "trap_old_form.pt", saved({"weight": Trap(trace)}, _use_new_zipfile_serialization=False)
    yield "trap_as_key.pt", saved({**state, "x": [Trap(trace)]})
    yield "module.pt", saved(torch.nn.Linear(2, 2))
    yield "list.pt", saved([torch.ones(2)])
    yield "number.pt", saved(3)
    first = next(iter(state))
    yield "other_keys.pt", saved({f"other.{key}": value for key, value in state.items()})
    yield "other_shape.pt", saved({**state, first: torch.ones(7, 7)})
    yield "text_inside.pt", saved({**state, first: "text"})
    yield "meta.pt", saved({**state, first: torch.ones(state[first].shape, device="meta")})
    yield "sparse.pt", saved({**state, first: torch.eye(3).to_sparse()})
    yield "expanded.pt", saved({**state, first: torch.ones(1).expand(1 << 34)})
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(whole_file)) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
        target.writestr("archive/data/999", bytes(1 << 26))
    yield "bomb.pt", packed.getvalue()
