"""Tells running out of memory or of room from other faults, whoever raised them, and says it.

torch, numpy and the system have a type and a wording each for a lack of memory, and a full disk
comes up as an `OSError` from whatever was writing at that moment.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from medvae3d.errors import MedvaeError, MemoryLimitError, OutputError, causes

# CUDA, torch's allocator on the CPU (Linux and others), oneDNN, the system.
MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "could not create a memory",
    "cannot allocate memory",
)
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    if isinstance(error, MedvaeError):
        return False
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in MEMORY_WORDS)


def no_room(error: BaseException) -> OSError | None:
    """What among the causes of an error says that nothing more can be written, if anything."""
    for each in causes(error):
        if isinstance(each, OSError) and each.errno in NO_ROOM:
            return each
    return None


def first_line(error: BaseException) -> str:
    """What an error says in its first line, or its name."""
    return (str(error).splitlines() or [""])[0].strip()[:200] or type(error).__name__


@contextmanager
def explained() -> Iterator[None]:
    """Turns a lack of memory or room that nobody nearer to it has explained into our errors.

    Raises:
        MemoryLimitError: If memory did not suffice.
        OutputError: If nothing more could be written.
    """
    try:
        yield
    except MedvaeError:
        raise
    except Exception as error:
        found = explanation(error)
        if found is None:
            raise
        raise found from error


def explanation(error: BaseException) -> MedvaeError | None:
    """A lack of memory or room in our words; ``None`` for other faults."""
    full = no_room(error)
    if full is not None:
        return OutputError(
            f"{full.filename or 'a file'} cannot be written: {full.strerror}. Make room, or "
            f"choose a folder that you may write to."
        )
    if is_out_of_memory(error):
        return MemoryLimitError(
            f"memory does not suffice: {first_line(error)}. Ask for less at a time, or take a "
            f"machine with more memory; what was written so far is whole."
        )
    return None
