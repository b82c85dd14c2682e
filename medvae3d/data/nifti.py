"""NIfTI files as they are stored: checked headers, encoded voxels, reproducible bytes.

A file is refused before memory is claimed for it if its header cannot be true. Writing goes to a
temporary file beside the target that then takes its name, so that no reader meets half a volume.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import nibabel as nib
import numpy as np

from medvae3d.errors import GridError, MedvaeError, OutputError, UnreadableFileError, causes
from medvae3d.exhaustion import is_out_of_memory
from medvae3d.files import require_regular
from medvae3d.geometry import Grid, Triple

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Deflate cannot shrink anything by more than this (zlib technical notes: 1032 to 1).
LARGEST_GZIP_RATIO = 1040
# 48^3 of CT as int16 (221 kB) on one core: level 1 2.3 ms, level 6 10.4 ms and 2 % smaller.
GZIP_LEVEL = 1
STORED_TYPES = frozenset(
    np.dtype(name) for name in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
)
BROKEN_HEADER = (nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError)
UNITS = {1: "m", 3: "micrometre"}
# Between header and voxels there may be extensions, after the voxels nothing: both are read through
# to get at the voxels and at the check sum.
LARGEST_OFFSET, LARGEST_TAIL = 1 << 27, 1 << 24
SMALL_BYTES = 1 << 28
# Microscopes reach 0.2 micrometre, scanners 2 m; what lies outside makes bombs when resampled.
SPACINGS_MM, FARTHEST_MM = (1e-4, 1e3), 1e6


def read_stored(path: Path, name: str) -> tuple[NDArray[Any], Any]:
    """Reads voxels as they are stored, Fortran ordered, after all checks of the header."""
    with _opened(path, name) as (file, size):
        header = _read_header(file, name)
        count, offset = _claims(header, size, path.name.endswith(".gz"), name)
        _require_memory(count, name)
        file.seek(offset)
        data = file.read(count)
        if path.name.endswith(".gz") and len(data) == count:
            _require_end(file, name)
    if len(data) < count:
        raise UnreadableFileError(
            f"{name} is truncated: its header promises {count} bytes of voxels, it holds "
            f"{len(data)}. Copy or download it again."
        )
    stored = np.frombuffer(data, header.get_data_dtype()).reshape(stored_shape(header), order="F")
    return stored, header


def read_header(path: Path, name: str) -> Any:
    """Reads the header alone, after all checks that need no voxels."""
    with _opened(path, name) as (file, size):
        header = _read_header(file, name)
        _claims(header, size, path.name.endswith(".gz"), name)
    return header


@contextmanager
def enough_memory(name: str) -> Iterator[None]:
    """Says which file it was when memory runs out inside.

    Raises:
        UnreadableFileError: If it does.
    """
    try:
        yield
    except Exception as error:
        chain = list(causes(error))  # MONAI wraps what goes wrong in a transform
        is_told = any(isinstance(each, MedvaeError) for each in chain)
        if is_told or not any(map(is_out_of_memory, chain)):
            raise
        raise UnreadableFileError(
            f"{name} does not fit into the memory that is free. Crop it or resample it to larger "
            f"voxels, or close other programs."
        ) from error


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[Any, int]]:
    """The file as its voxels lie in it, and its size on disk; what goes wrong is told."""
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UnreadableFileError(
            f"{name} is not named as NIfTI; allowed are .nii and .nii.gz. "
            f"Convert it, for example with SimpleITK or dcm2niix."
        )
    try:
        with enough_memory(name):
            size = require_regular(path).st_size
            opener: Any = gzip.open if path.name.endswith(".gz") else open
            with opener(path, "rb") as file:
                yield file, size
    except FileNotFoundError as error:
        raise UnreadableFileError(
            f"{name} does not exist. Check the path; paths in a data list are relative to it."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, MedvaeError):
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableFileError(
            f"{name} cannot be read: {reason}. It may be truncated or not be NIfTI at all; copy or "
            f"download it again."
        ) from error


def write_stored(path: Path, stored: NDArray[Any], grid: Grid, header: Any) -> None:
    """Writes voxels that are already encoded under the header, which takes shape and affine."""
    header = header.copy()
    if stored_shape(header) != stored.shape:
        header.set_data_shape(stored.shape)
    if not np.array_equal(best_affine(header), grid.affine):
        for name in ("qform", "sform"):
            set_form = getattr(header, f"set_{name}")
            set_form(grid.affine, int(header[f"{name}_code"]) or 1)
    header["vox_offset"] = 0
    buffer = io.BytesIO()
    header.write_to(buffer)
    parts = (buffer.getvalue(), stored.tobytes(order="F"))
    write_bytes(path, *(pack(*parts) if path.name.endswith(".gz") else parts))


def pack(*parts: bytes, level: int = GZIP_LEVEL) -> tuple[bytes, ...]:
    """Compresses to gzip without time stamp, name or system, so that equal stays equal."""
    deflate = zlib.compressobj(level, zlib.DEFLATED, -15)
    body, crc, size = [], 0, 0
    for part in parts:
        body.append(deflate.compress(part))
        crc, size = zlib.crc32(part, crc), size + len(part)
    tail = deflate.flush() + struct.pack("<II", crc, size & 0xFFFFFFFF)
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff", *body, tail


def write_bytes(path: str | os.PathLike[str], *parts: bytes) -> None:
    """Writes a file whole or not at all; makes its folder."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.writelines(parts)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}. "
            f"Choose a folder with room that you may write to."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def scaling(header: Any) -> tuple[float, float]:
    """Slope and intercept that take stored values to values; 1 and 0 for none."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    # The standard: a slope of 0 means that there is no scaling.
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    return slope, inter if np.isfinite(inter) else 0.0


def best_affine(header: Any) -> NDArray[np.float64]:
    """Voxel index to mm: from the sform, else the qform, else spacing alone, as nibabel has it."""
    return np.asarray(header.get_best_affine(), dtype=np.float64)


def stored_shape(header: Any) -> tuple[int, ...]:
    """All axes of the stored array."""
    dim = header["dim"]
    return tuple(int(n) for n in dim[1 : 1 + int(dim[0])])


def grid_of(header: Any, name: str) -> Grid:
    """Makes the grid of the three spatial axes, or says why it cannot be used."""
    sizes = [float(s) for s in header["pixdim"][1:4]]
    if not all(0 < s < float("inf") for s in sizes):
        raise GridError(
            f"{name} has a voxel size of {' x '.join(f'{s:g}' for s in sizes)} mm; all three must "
            f"be above 0. Repair the header: write the true voxel size (pixdim) into it."
        )
    unit = UNITS.get(int(header["xyzt_units"]) & 7)
    if unit is not None:
        raise GridError(
            f"{name} gives lengths in {unit}; allowed is mm. Scale its affine to mm and save it."
        )
    try:
        # A hostile affine overflows on the way to being refused.
        with np.errstate(all="ignore"):
            grid = Grid(cast(Triple, stored_shape(header)[:3]), best_affine(header))
    except (*BROKEN_HEADER, ValueError) as error:
        raise GridError(f"{name}: {error}") from error
    return require_plausible(grid, name)


def require_plausible(grid: Grid, name: str) -> Grid:
    """Refuses grids that no scanner and no microscope has.

    Raises:
        GridError: If voxels are too small or large, or lie too far away.
    """
    with np.errstate(all="ignore"):
        farthest = float(np.abs(grid.corners).max())
    low, high = SPACINGS_MM
    if not low <= min(grid.spacing) <= max(grid.spacing) <= high or not farthest <= FARTHEST_MM:
        raise GridError(
            f"{name} has voxels of {' x '.join(f'{s:g}' for s in grid.spacing)} mm, the farthest "
            f"{farthest:g} mm from the origin; allowed are {low:g} to {high:g} mm, and "
            f"{FARTHEST_MM:g} mm. Repair its affine."
        )
    return grid


def _read_header(file: Any, name: str) -> Any:
    block = file.read(348)
    # By its size, which stands first, the header also tells the order of its bytes.
    sizes = {struct.unpack(o + "i", block[:4])[0]: o for o in "<>"} if len(block) == 348 else {}
    kind = nib.Nifti1Header if 348 in sizes else nib.Nifti2Header if 540 in sizes else None
    magic = block[344:347] if 348 in sizes else block[4:7]
    if kind is None or magic != (b"n+1" if 348 in sizes else b"n+2"):
        raise UnreadableFileError(
            f"{name} is not a NIfTI file: its header starts with {block[:4]!r} and is marked "
            f"{magic!r}; allowed are single-file NIfTI-1 (n+1) and NIfTI-2 (n+2). Convert it."
        )
    file.seek(0)
    try:
        # Unchecked: the repairs of nibabel would turn a negative voxel size into a positive one.
        header = kind.from_fileobj(file, sizes[348 if 348 in sizes else 540], check=False)
    except (*BROKEN_HEADER, struct.error, ValueError) as error:
        raise UnreadableFileError(
            f"{name} has a header that cannot be read: {error}. Convert the file again."
        ) from error
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    is_scaled = slope != 0 and np.isfinite(slope)
    # A slope of NaN is how nibabel writes that there is none.
    if np.isinf(slope) or (is_scaled and not np.isfinite(inter)):
        raise UnreadableFileError(
            f"{name}: the header scales voxels by {slope:g} and adds {inter:g} (scl_slope and "
            f"scl_inter); allowed are finite numbers. Convert the file again."
        )
    return header


def _claims(header: Any, size: int, zipped: bool, name: str) -> tuple[int, int]:
    """Bytes of voxels and their offset, if the header can be true of a file of this size."""
    rank, shape = int(header["dim"][0]), stored_shape(header)
    if not 1 <= rank <= 7 or min(shape) < 1:
        raise UnreadableFileError(
            f"{name}: the header gives {rank} axes of sizes {shape}; allowed are three axes of at "
            f"least one voxel. Convert the file again."
        )
    if rank not in (3, 4) or min(shape[:3]) < 2:
        raise GridError(
            f"{name} has shape {shape}; allowed are volumes with three axes of two or more "
            f"voxels, and a fourth axis for channels. Save one volume a file, not slices or series."
        )
    try:
        dtype = header.get_data_dtype()
    except (*BROKEN_HEADER, KeyError):
        dtype = None
    if dtype is None or dtype.newbyteorder("=") not in STORED_TYPES:
        raise UnreadableFileError(
            f"{name} holds voxels of type {dtype or int(header['datatype'])}; allowed are real "
            f"numbers (8 to 64 bits), not colours or complex numbers. Save the channel that you "
            f"need, as int16 or float32."
        )
    # Python integers: a product of seven 16-bit sizes overflows 64 bits.
    count = dtype.itemsize
    for n in shape:
        count *= n
    offset = float(header["vox_offset"])
    # 0 means byte 352 to some readers and 348 to others: the same file, other voxels.
    if not 348 <= offset <= LARGEST_OFFSET or offset != int(offset):
        least = 544 if int(header["sizeof_hdr"]) == 540 else 352
        raise UnreadableFileError(
            f"{name}: the header places the voxels at byte {offset:g} (vox_offset); allowed are "
            f"whole numbers from {least} to {LARGEST_OFFSET}. Convert the file again."
        )
    most = size * LARGEST_GZIP_RATIO if zipped else size
    start = int(offset)
    if start + count > most:
        raise UnreadableFileError(
            f"{name}: the header promises {count / 1e6:.6g} MB of voxels ({shape}, {dtype}), "
            f"which a file of {size / 1e6:.3g} MB cannot hold. It is truncated or its header is "
            f"wrong; copy or download it again."
        )
    return count, start


def _require_end(file: Any, name: str) -> None:
    """Reads past the last voxel, where the check sum is; a stream without end is refused."""
    rest = 0
    while block := file.read(1 << 20):
        rest += len(block)
        if rest > LARGEST_TAIL:
            raise UnreadableFileError(
                f"{name} goes on for more than {LARGEST_TAIL / 1e6:.0f} MB after the voxels that "
                f"its header promises. Convert the file again."
            )


def _require_memory(count: int, name: str) -> None:
    """Refuses voxels that memory has no room for, where the system says how much is free."""
    if count < SMALL_BYTES:
        return
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) << 10
    except (OSError, StopIteration, ValueError, IndexError):
        return
    if count > free:
        raise UnreadableFileError(
            f"{name} promises {count / 1e9:.3g} GB of voxels; {free / 1e9:.3g} GB of memory are "
            f"free. Crop it or resample it to larger voxels."
        )
