"""Headers of NRRD and MetaImage files, looked at before ITK sees them.

Such a header may name any other file as that of its voxels, and any size for them. ITK believes
most of it: it takes numbers that are none for 0 and voxels that cannot be unpacked for whatever was
in memory, and ends the process at lines that are too long or axes that are too many. So a header is
read here first, as both formats define it, and what does not hold is refused.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import SimpleITK as sitk

from medvae3d.data.nifti import LARGEST_GZIP_RATIO
from medvae3d.errors import UnreadableFileError
from medvae3d.files import require_regular

LARGEST_HEADER, LONGEST_LINE, MOST_LINES = 1 << 20, 1 << 14, 10_000
MOST_CHANNELS = 64
AXES = range(2, 6)
NUMBER = re.compile(r"[^(),\s]+")
# Bytes of a value, by the names of its type.
NRRD_TYPES = {
    name: size
    for size, names in {
        1: "signed char,int8,int8_t,uchar,unsigned char,uint8,uint8_t",
        2: "short,short int,signed short,signed short int,int16,int16_t,ushort,unsigned short,"
        "unsigned short int,uint16,uint16_t",
        4: "int,signed int,int32,int32_t,uint,unsigned int,uint32,uint32_t,float",
        8: "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t,"
        "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t,double",
    }.items()
    for name in names.split(",")
}
META_TYPES = {
    f"MET_{name}": size
    for size, names in {
        1: "CHAR,UCHAR", 2: "SHORT,USHORT", 4: "INT,UINT,LONG,ULONG,FLOAT",
        8: "LONG_LONG,ULONG_LONG,DOUBLE",
    }.items()
    for name in names.split(",")
}  # fmt: skip
ENCODINGS = {
    "raw": "plain", "gzip": "packed", "gz": "packed", "bzip2": "packed", "bz2": "packed",
    "txt": "text", "text": "text", "ascii": "text", "hex": "text",
}  # fmt: skip


@dataclass(frozen=True)
class Promise:
    """What a header says of its voxels.

    Attributes:
        values: How many there are.
        size: Bytes of one.
        form: ``plain``, ``packed`` (by whatever), ``zlib`` or ``text``.
        files: Names of the files that hold them; none if they follow the header.
        begin: Byte behind the header.
    """

    values: int
    size: int
    form: str
    files: tuple[str, ...]
    begin: int


def require_sound(path: Path, what: str) -> None:
    """Checks that a header is right, and that its voxels lie in the file or beside it, whole.

    Raises:
        UnreadableFileError: If not.
    """
    try:
        require_regular(path)
        with open(path, "rb") as file:
            block = file.read(LARGEST_HEADER)
        promise = (_nrrd if path.suffix.lower() in (".nrrd", ".nhdr") else _meta)(block)
        for name in promise.files:
            _require_inside(name, path, what)
            require_regular(path.parent / name)
        _require_held(promise, path)
    except OSError as error:
        if isinstance(error, UnreadableFileError):
            raise
        raise UnreadableFileError(
            f"{what} {path} cannot be read: {error.filename or path}: "
            f"{error.strerror or error}. Copy it again, with the file of its voxels."
        ) from error
    except ValueError as error:
        raise UnreadableFileError(
            f"{what} {path} has a header that cannot be right: {error}. Export it again."
        ) from error
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UnreadableFileError(
            f"{what} {path} has a header that cannot be read: {last_line(error)}. Export it again."
        ) from error


def last_line(error: BaseException) -> str:
    """What ITK has to say at the end of its long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def _require_inside(name: str, path: Path, what: str) -> None:
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    if ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        raise UnreadableFileError(
            f"{what} {path} takes its voxels from {name!r}; allowed are files in its own "
            f"folder. Put the file there, and correct its header."
        )


def _require_held(promise: Promise, path: Path) -> None:
    """Checks that files hold as many bytes as the header promises."""
    files = [path.parent / name for name in promise.files] or [path]
    held = sum(file.stat().st_size for file in files) - (0 if promise.files else promise.begin)
    wanted = promise.values * promise.size
    least = {"plain": wanted, "text": promise.values}.get(promise.form, wanted / LARGEST_GZIP_RATIO)
    if held < least:
        raise ValueError(
            f"it promises {promise.values} values in {wanted} bytes, which {held} bytes of voxels "
            f"cannot hold"
        )
    if promise.form == "zlib" and len(files) == 1:
        found = _unpacked(files[0], 0 if promise.files else promise.begin, wanted)
        if found != wanted:
            raise ValueError(f"it promises {wanted} bytes of voxels, and {found} are in it")


def _unpacked(path: Path, begin: int, most: int) -> int:
    """Bytes that a zlib stream unpacks to, counted up to a little more than ``most``."""
    stream, count = zlib.decompressobj(47), 0  # zlib or gzip, whichever its head says
    try:
        with open(path, "rb") as file:
            file.seek(begin)
            while count <= most and not stream.eof and (block := file.read(1 << 20)):
                while block and count <= most:
                    count += len(stream.decompress(block, 1 << 20))
                    block = stream.unconsumed_tail
    except zlib.error as error:
        raise ValueError(f"its voxels cannot be unpacked ({error})") from error
    return count


def _lines(block: bytes) -> Iterator[tuple[str, int]]:
    """The lines of a header, and the byte behind each."""
    at = 0
    for _ in range(MOST_LINES):
        end = block.find(b"\n", at)
        stop = len(block) if end < 0 else end
        if stop - at > LONGEST_LINE:
            raise ValueError(f"it has a line of more than {LONGEST_LINE} bytes")
        line, at = block[at:stop].decode("latin-1").rstrip("\r"), stop + 1
        if "\0" in line:
            raise ValueError("it holds bytes that are no text")
        yield line, min(at, len(block))
        if end < 0:
            return
    raise ValueError(f"it has more than {MOST_LINES} lines")


def _nrrd(block: bytes) -> Promise:
    fields: dict[str, str] = {}
    files: list[str] = []
    begin, is_list = len(block), False
    for number, (line, after) in enumerate(_lines(block)):
        if number == 0:
            if re.fullmatch(r"NRRD000[1-5]", line) is None:
                raise ValueError(f"it begins with {line[:20]!r}, not with NRRD0001 to NRRD0005")
        elif is_list:
            files += [line.strip()] * bool(line.strip())
        elif not line.strip():
            begin = after
            break
        elif line.startswith("#") or ":=" in line:
            continue
        else:
            key, found, value = line.partition(":")
            key = {"datafile": "data file", "centerings": "centers"}.get(key.strip(), key.strip())
            if not found or key in fields:
                raise ValueError(f"it has the line {line[:60]!r}")
            fields[key] = value.strip()
            is_list = key == "data file" and fields[key].split(" ")[0] == "LIST"
    sizes = _sizes(fields, "dimension", "sizes")
    # An axis that is none of space has no direction and no spacing.
    for key, absent in {"space directions": "none", "spacings": "nan", "space origin": ""}.items():
        _require_numbers(fields, key, None, absent)
    size = NRRD_TYPES.get(fields.get("type", "").lower())
    form = ENCODINGS.get(fields.get("encoding", "").lower())
    if size is None or form is None:
        raise ValueError(
            f"it has the type {fields.get('type')!r} in the encoding {fields.get('encoding')!r}"
        )
    for key in ("byte skip", "line skip", "byteskip", "lineskip"):
        _whole(fields.get(key, "0"), key, -1, 1 << 40)
    named = _named(fields.get("data file", ""), is_list, files)
    return Promise(math.prod(sizes), size, form, named, begin)


def _meta(block: bytes) -> Promise:
    fields: dict[str, str] = {}
    files: list[str] = []
    begin = len(block)
    is_list = False
    for line, after in _lines(block):
        if is_list:
            files += [line.strip()] * bool(line.strip())
            continue
        if not line.strip():
            continue
        key, found, value = line.partition("=")
        if not found or key.strip() in fields:
            raise ValueError(f"it has the line {line[:60]!r}")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            begin, is_list = after, value.split()[:1] == ["LIST"]
            if not is_list:
                break
    if "ElementDataFile" not in fields:
        raise ValueError("it does not say where its voxels are (ElementDataFile)")
    sizes = _sizes(fields, "NDims", "DimSize")
    axes = len(sizes)
    for key in ("Offset", "Position", "Origin", "ElementSpacing", "ElementSize"):
        _require_numbers(fields, key, axes)
    for key in ("TransformMatrix", "Rotation", "Orientation"):
        _require_numbers(fields, key, axes * axes)
    channels = _whole(fields.get("ElementNumberOfChannels", "1"), "channels", 1, MOST_CHANNELS)
    _whole(fields.get("HeaderSize", "0"), "HeaderSize", -1, 1 << 40)
    size = META_TYPES.get(fields.get("ElementType", ""))
    if size is None:
        raise ValueError(f"it has the type {fields.get('ElementType')!r}")
    is_true = {key: fields.get(key, "").lower() in ("true", "1", "t", "y") for key in
               ("CompressedData", "BinaryData")}  # fmt: skip
    form = "zlib" if is_true["CompressedData"] else "plain" if is_true["BinaryData"] else "text"
    where = fields["ElementDataFile"]
    named = () if where.upper() == "LOCAL" else _named(where, is_list, files)
    return Promise(math.prod(sizes) * channels, size, form, named, begin)


def _named(value: str, is_list: bool, files: Sequence[str]) -> tuple[str, ...]:
    """The files that hold the voxels."""
    if is_list:
        if not files:
            raise ValueError("it has a list of files without a name")
        return tuple(files)
    if "%" in value:
        raise ValueError(f"it takes its voxels from many files ({value[:60]!r}), not from one")
    return (value,) if value else ()


def _sizes(fields: Mapping[str, str], axes: str, sizes: str) -> list[int]:
    count = _whole(fields.get(axes, ""), axes, AXES[0], AXES[-1])
    found = [_whole(word, sizes, 1, 1 << 31) for word in fields.get(sizes, "").split()]
    if len(found) != count:
        raise ValueError(f"it has {count} axes and {len(found)} sizes")
    return found


def _whole(text: str, name: str, least: int, most: int) -> int:
    if re.fullmatch(r"-?\d{1,12}", text.strip()) is None or not least <= int(text) <= most:
        raise ValueError(f"{name} is {text[:40]!r}; allowed are {least} to {most}")
    return int(text)


def _require_numbers(
    fields: Mapping[str, str], key: str, count: int | None, absent: str = ""
) -> None:
    words = NUMBER.findall(fields.get(key, ""))
    numbers = [_number(word) for word in words if word.lower() != absent]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{key} is {fields[key][:60]!r}; allowed are finite numbers")
    if key in fields and count is not None and len(words) != count:
        raise ValueError(f"{key} has {len(words)} numbers; allowed are {count}")


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
