"""Files of tensors from anywhere, read as data: nothing in them is run, and none is a bomb."""

from __future__ import annotations

import os
import zipfile
from typing import Any

import torch

from medvae3d.files import require_regular


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """Reads what ``torch.save`` wrote, as long as it is tensors and plain values.

    A pickle that would call anything else is refused by torch before it does. A tensor has to have
    its numbers in the file: one that is small there and large in memory is refused here.

    Args:
        path: The file.

    Returns:
        What it holds, on the CPU.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is damaged, or holds more than that; says what.
    """
    size = require_regular(path).st_size
    try:
        _require_stored(path, size)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:  # torch raises many types for damaged or foreign files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(reason) from error
    _require_plain(found, size)
    return found


def _require_stored(path: str | os.PathLike[str], size: int) -> None:
    """Refuses archives that unpack to more than they are, and those with a wrong check sum.

    ``torch.save`` does not compress, and ``torch.load`` compares no check sums: numbers that were
    damaged on a disk would be taken as they are.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        whole = sum(each.file_size for each in members)
        if whole > size or any(each.compress_type != zipfile.ZIP_STORED for each in members):
            raise ValueError(
                f"it unpacks to {whole} bytes from {size}, which torch.save never writes"
            )
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"the check sum of its part {broken} is wrong: the file is damaged")


def _require_plain(found: Any, size: int) -> None:
    """Refuses tensors that are no dense array of numbers that stand in the file."""
    if isinstance(found, torch.Tensor):
        is_dense = found.layout == torch.strided and found.device.type == "cpu"
        if not is_dense or found.is_quantized or found.numel() * found.element_size() > 2 * size:
            raise ValueError(
                f"it holds a tensor of shape {tuple(found.shape)} whose numbers are not all in it"
            )
    elif isinstance(found, dict):
        for each in found.values():
            _require_plain(each, size)
    elif isinstance(found, (list, tuple)):
        for each in found:
            _require_plain(each, size)
