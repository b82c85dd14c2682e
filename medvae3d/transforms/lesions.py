"""Synthetic lesions for volumes in memory: what the MONAI and the torchio transform have in common.

The bundle is loaded once a process and device, when the first lesion is made or when the transform
is set up on the CPU; it does not travel with a pickled transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from medvae3d.apps.bundle import Bundle, find_bundle, load_bundle
from medvae3d.errors import BundleError, RejectionError, SettingError
from medvae3d.geometry import Grid
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.synthesis.hosts import host_in_memory
from medvae3d.synthesis.insertion import insert_lesions

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Mask = NDArray[np.bool_]
    Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Change:
    """What lesions do to a case.

    Attributes:
        box: The voxels that hold all of it.
        image: Native units in the box, :math:`(C, i, j, k)`.
        added: New lesions in the box, :math:`(i, j, k)`.
        lesions: A record each.
    """

    box: Box
    image: Floats = field(repr=False)
    added: Mask = field(repr=False)
    lesions: Sequence[Any] = field(repr=False)


@lru_cache(maxsize=4)
def _loaded(root: str, device: str) -> Bundle:
    return load_bundle(root, device)


@dataclass(frozen=True)
class LesionMaker:
    """Makes lesions with a two-stage bundle; see `insert_lesions` for what is not said here.

    Attributes:
        bundle: Name of a shipped two-stage bundle, or the folder of any.
        lesions: Fewest and most lesions put into a case.
        volume_ml: Smallest and largest volume of each; as in the training set if not given.
        temperature: Scales the deviation of latents; the bundle's if not given.
        extrapolate: Whether volumes beyond the training set may be asked for.
        allow_overlap: Whether new lesions may lie on others.
        device: Where networks compute, such as ``cpu`` or ``cuda``. A GPU cannot be used in a
            worker that was forked: load with ``num_workers=0`` or a ``spawn`` context then.
    """

    bundle: str
    lesions: tuple[int, int] = (1, 1)
    volume_ml: tuple[float, float] | None = None
    temperature: float | None = None
    extrapolate: bool = False
    allow_overlap: bool = False
    device: str = "cpu"

    @classmethod
    def of(cls, bundle: str | PathLike[str], **options: Any) -> LesionMaker:
        """Finds the bundle and checks that it can be used.

        Raises:
            BundleError: If it is unknown, or does not put lesions into scans.
            SettingError: If the number or volume of lesions cannot be used.
        """
        for key in ("lesions", "volume_ml"):
            if options.get(key) is not None:
                options[key] = tuple(options[key])
        maker = cls(str(find_bundle(str(bundle))), **options)
        low, high = maker.lesions
        if not 1 <= low <= high:
            raise SettingError(
                f"lesions are {low} to {high}; allowed are whole numbers from 1 on, the smaller "
                f"one first."
            )
        if not isinstance(_loaded(maker.bundle, "cpu").network, TwoStageModel):
            raise BundleError(
                f"{bundle} makes whole volumes and cannot put lesions into a case. Use a two-stage "
                f"bundle, such as brain_mri_ms_pavae or sts_petct_pavae."
            )
        return maker

    @property
    def loaded(self) -> Bundle:
        """The bundle in this process."""
        return _loaded(self.bundle, self.device)

    @property
    def label_value(self) -> int:
        """The bundle's own value of a lesion."""
        return int(_loaded(self.bundle, "cpu").recipe.values[1])

    def __call__(
        self,
        image: Floats,
        grid: Grid,
        seed: int,
        *,
        there: Mask | None = None,
        brain: Mask | None = None,
    ) -> Change | str:
        """Puts lesions into a case.

        Args:
            image: Native units, :math:`(C, I, J, K)`.
            grid: Where its voxels lie.
            seed: The result depends on it and on the case alone.
            there: Lesions that the case has, :math:`(I, J, K)`.
            brain: Brain or body; found in the image if not given.

        Returns:
            What changes; or why no lesion could be made, if none found a place.

        Raises:
            SettingError: If there are not as many channels as the bundle needs.
            GridError: If the case is smaller than what a lesion is made in.
            IntensityError: If a channel is constant, or of another unit or modality.
        """
        bundle = self.loaded
        label = None if there is None else (there * bundle.recipe.values[1]).astype(np.uint8)
        host = host_in_memory(image, grid, bundle.recipe, label=label, brain=brain)
        try:
            made = insert_lesions(
                host,
                bundle.network,
                bundle.recipe,
                seed=seed,
                lesions=self.lesions,
                volume_ml=self.volume_ml,
                extrapolate=self.extrapolate,
                allow_overlap=self.allow_overlap,
                temperature=self.temperature,
                device=bundle.device,
            )
        except RejectionError as error:
            # A case without room for a lesion is no reason to end a training.
            return str(error)
        box = _box_of(made.zone | made.added)
        return Change(box, made.image[(slice(None), *box)], made.added[box], made.lesions)


def _box_of(where: Mask) -> Box:
    sides = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        filled = np.flatnonzero(where.any(axis=others))
        sides.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return sides[0], sides[1], sides[2]
