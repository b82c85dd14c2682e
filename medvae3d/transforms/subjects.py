"""Synthetic lesions as torchio transforms: a random one, and the one that it plays and records."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
import torchio as tio
from torchio.transforms.augmentation import RandomTransform

from medvae3d.errors import LabelError, SettingError
from medvae3d.geometry import Grid
from medvae3d.transforms.draws import SharedDraws, identity_of
from medvae3d.transforms.lesions import Change, LesionMaker

COUNT_KEY = "synthetic_lesions"


class SynthesizeLesion(tio.Transform):
    """Puts the lesions of a seed into a subject; its entry ``synthetic_lesions`` counts them.

    Args:
        bundle: Name of a shipped two-stage bundle, or the folder of any.
        images: Names of the images; their channels together, in order, are those of the bundle.
        label: Name of the label map; ``None`` if there is none.
        seed: The lesions depend on it and on the subject alone.
        label_value: Value of lesions in the label map; the bundle's if not given.
        brain: Name of a label map of the brain or body; found in the image if not given.
        lesion_options: As for `LesionMaker`: ``lesions``, ``volume_ml`` and so on.
        **kwargs: Of torchio's ``Transform``.
    """

    def __init__(
        self,
        bundle: str | PathLike[str],
        images: Sequence[str] = ("image",),
        label: str | None = "label",
        seed: int = 0,
        label_value: int | None = None,
        brain: str | None = None,
        lesion_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.bundle = str(bundle)
        self.images = (images,) if isinstance(images, str) else tuple(images)
        self.label, self.seed, self.brain = label, seed, brain
        self.label_value = label_value
        self.lesion_options = dict(lesion_options or {})
        self.maker = LesionMaker.of(bundle, **self.lesion_options)
        # What torchio needs to play it again from a subject's history.
        self.args_names = [
            "bundle", "images", "label", "seed", "label_value", "brain", "lesion_options",
        ]  # fmt: skip

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Puts lesions into the subject."""
        chosen = [self._named(subject, name) for name in self.images]
        grid = _grid(chosen[0])
        for name, each in zip(self.images[1:], chosen[1:], strict=True):
            grid.require_same(_grid(each), this=self.images[0], that=name)
        image = np.concatenate([each.data.numpy() for each in chosen]).astype(np.float32)
        value = self.maker.label_value if self.label_value is None else self.label_value
        there = None if self.label is None else self._mask(subject, self.label, grid) == value
        brain = None if self.brain is None else self._mask(subject, self.brain, grid) > 0
        # torchio makes numpy raise where the library lets values overflow on purpose.
        with np.errstate(divide="warn", over="ignore", invalid="warn"):
            made = self.maker(image, grid, self.seed, there=there, brain=brain)
        subject[COUNT_KEY] = len(made.lesions) if isinstance(made, Change) else 0
        if isinstance(made, Change):
            self._put(subject, chosen, made, value)
        return subject

    def _put(self, subject: tio.Subject, chosen: Sequence[Any], made: Change, value: int) -> None:
        start = 0
        for each in chosen:
            data, stop = each.data.clone(), start + each.data.shape[0]
            part = made.image[start:stop]
            values = part if data.dtype.is_floating_point else np.rint(part)
            data[(slice(None), *made.box)] = torch.as_tensor(values).to(data.dtype)
            each.set_data(data)
            start = stop
        if self.label is not None:
            mask: Any = subject[self.label]
            data = mask.data.clone()
            data[(slice(None), *made.box)][:, torch.as_tensor(made.added)] = value
            mask.set_data(data)

    def _named(self, subject: tio.Subject, name: str) -> Any:
        if name not in subject:
            raise SettingError(
                f"the subject has no entry {name!r}; it has {', '.join(map(str, subject))}. Name "
                f"its images with images=, its label map with label=, or give label=None."
            )
        return subject[name]

    def _mask(self, subject: tio.Subject, name: str, grid: Grid) -> Any:
        mask = self._named(subject, name)
        if mask.data.shape[0] != 1:
            raise LabelError(
                f"{name} has {mask.data.shape[0]} channels; allowed is one map of whole numbers. "
                f"Put the transform before OneHot."
            )
        grid.require_same(_grid(mask), this=self.images[0], that=name)
        return mask.data[0].numpy()


class RandomSynthesizeLesion(RandomTransform):
    """Puts synthetic lesions into a share of subjects.

    The history of a subject holds the `SynthesizeLesion` that was played, with its seed.

    Args:
        bundle: As for `SynthesizeLesion`, like all up to ``lesion_options``.
        images: Names of the images, in the order of the bundle's channels.
        label: Name of the label map.
        p: Share of subjects that get lesions.
        seed: If given, lesions are a function of it, of the subject's images and of how often the
            subject was loaded, for any number of workers; see `SharedDraws`. If not, they are drawn
            from torch's global random state, as in all of torchio.
        label_value: Value of lesions in the label map.
        brain: Name of a label map of the brain or body.
        lesion_options: As for `LesionMaker`.
        **kwargs: Of torchio's ``Transform``.
    """

    def __init__(
        self,
        bundle: str | PathLike[str],
        images: Sequence[str] = ("image",),
        label: str | None = "label",
        p: float = 0.5,
        seed: int | None = None,
        label_value: int | None = None,
        brain: str | None = None,
        lesion_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(p=1, **kwargs)
        self.share = self.parse_probability(p)
        self.play = SynthesizeLesion(
            bundle, images, label, 0, label_value, brain, lesion_options, **self._get_base_args()
        )
        self.draws = None if seed is None else SharedDraws(seed)

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch it is, so that lesions depend on seed, subject and epoch alone."""
        if self.draws is None:
            raise SettingError("set_epoch needs a seed; give one: RandomSynthesizeLesion(seed=0).")
        self.draws.set_epoch(epoch)

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draws whether and what, and plays it."""
        if self.draws is None:
            chance, seed = self.sample_uniform(0, 1), self._get_random_seed()
        else:
            chosen = [self.play._named(subject, name) for name in self.play.images]
            chance, seed = self.draws(identity_of(*(each.data.numpy() for each in chosen)))
        if chance >= self.share:
            subject[COUNT_KEY] = 0
            return subject
        play = self.play
        played = SynthesizeLesion(
            play.bundle, play.images, play.label, seed, play.label_value, play.brain,
            play.lesion_options, **self._get_base_args(),
        )  # fmt: skip
        return played(subject)


def _grid(image: Any) -> Grid:
    i, j, k = image.spatial_shape
    return Grid((i, j, k), np.asarray(image.affine, np.float64))
