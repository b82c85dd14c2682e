"""Trainers that hold the folders that they write, however they were started.

``medvae3d train``, ``monai.bundle run``, ``torchrun`` and MONAI Label all run a trainer in the end,
so this is where two of them on the same folders are told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch.distributed as dist
from monai.engines import SupervisedTrainer

from medvae3d.data.locks import held_folder

ADVICE = "choose other folders for ckpt_dir and output_dir (for --out of `medvae3d train`)"


def folders_of(handlers: Iterable[Any]) -> tuple[Path, ...]:
    """Folders of the files that handlers write, each once; a handler has its file as ``path``.

    Example:
        >>> import torch
        >>> from medvae3d.training.checkpoints import WeightsSaver
        >>> folders_of([WeightsSaver("run/models/model.pt", torch.nn.Identity()), object()])
        (PosixPath('run/models'),)
    """
    files = (getattr(handler, "path", None) for handler in handlers)
    return tuple(sorted({file.parent for file in files if isinstance(file, Path)}))


class HeldFolders:
    """Mixed into a trainer: lets it run while no other process writes the same folders.

    Attributes:
        folders: The folders, of which the first process of a training holds each.
    """

    folders: tuple[Path, ...] = ()

    def run(self) -> None:
        """Trains.

        Raises:
            OutputError: If another process is writing one of the folders.
        """
        is_first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
        with ExitStack() as held:
            for folder in self.folders if is_first else ():
                held.enter_context(held_folder(folder, advice=ADVICE))
            super().run()  # type: ignore[misc]


class HeldSupervisedTrainer(HeldFolders, SupervisedTrainer):  # type: ignore[misc]
    """MONAI's trainer of one network, which holds the folders that its handlers write.

    Args:
        options: See MONAI's ``SupervisedTrainer``.
    """

    def __init__(self, *, train_handlers: Sequence[Any] | None = None, **options: Any) -> None:
        self.folders = folders_of(train_handlers or ())
        super().__init__(train_handlers=train_handlers, **options)
