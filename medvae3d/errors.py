"""The exceptions that a user of medvae3d may meet and catch.

Each message says what was found, what was allowed, which file or setting it concerns, and what to
do next. The command line prints the message alone and leaves with exit code 2.
"""

from __future__ import annotations

from collections.abc import Iterator


class MedvaeError(Exception):
    """Anything that the user can put right; the command line shows it without a traceback."""


class UnreadableFileError(MedvaeError, OSError):
    """A file is missing, truncated, or not of the format that its name promises."""


class DataListError(MedvaeError, ValueError):
    """A data list or manifest does not have the expected structure."""


class GridError(MedvaeError, ValueError):
    """The geometry of a volume cannot be used: its axes, spacing or affine are wrong."""


class GridMismatchError(GridError):
    """Two volumes that should lie voxel on voxel do not."""


class LabelError(MedvaeError, ValueError):
    """A mask holds values that it may not hold, or lacks those that it must."""


class IntensityError(MedvaeError, ValueError):
    """An image holds values that cannot be used: NaN, infinities, another modality or unit."""


class RangeError(MedvaeError, ValueError):
    """A request lies outside of what the weights were trained on."""


class BundleError(MedvaeError, ValueError):
    """A bundle is unknown, incomplete, or does not fit its weights."""


class SettingError(MedvaeError, ValueError):
    """An option or configuration value cannot be used."""


class OutputError(MedvaeError, OSError):
    """The output folder cannot be written or holds the files of another run."""


class MemoryLimitError(MedvaeError, MemoryError):
    """Memory does not suffice, even for the smallest part that can be computed at a time."""


class RejectionError(MedvaeError, RuntimeError):
    """Too many samples in a row were rejected."""


class NonFiniteTermError(MedvaeError, ArithmeticError):
    """A term of the objective became infinite or NaN."""


class DivergedFlowError(MedvaeError, ArithmeticError):
    """A Hamiltonian trajectory lost its energy: the step size is too large."""


class MetricError(MedvaeError, ArithmeticError):
    """A metric of a latent space is not positive definite, or of no cases at all."""


class StuckSamplerError(MedvaeError, RuntimeError):
    """A sampler of latents does not move: its samples would be copies of training cases."""


class WorkerError(MedvaeError, RuntimeError):
    """Processes that were to do the work die or do not answer."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what it was raised from, and so on: MONAI wraps errors into others."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


__all__ = [
    name
    for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, Exception)
]
