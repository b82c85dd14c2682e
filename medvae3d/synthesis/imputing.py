r"""Channels that a scan lacks, made from those that it has, through the latent.

With the observed channels :math:`x_o` (and the mask, where it is known) and the missing ones
:math:`x_m`,

.. math::
    p(x_m \mid x_o) = \int p(x_m \mid z)\, p(z \mid x_o)\, dz, \qquad
    \tilde w_k \propto \frac{p(x_o \mid z_k)\, p(z_k)}{q(z_k \mid x_o)}, \quad
    z_k \sim q(z \mid x_o),

the posterior is that of the encoder, which is told which channels were observed, or one of
:math:`K` draws from it, picked by its importance weight :math:`\tilde w_k`, which comes closer to
:math:`p(z \mid x_o)` the larger :math:`K` is. A flow carries a draw and its weight as in training.

References:
    Mattei and Frellsen, "MIWAE: deep generative modelling and imputation of incomplete data sets",
    ICML 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from medvae3d.data.preparation import FILL
from medvae3d.data.volumes import Volume, read_mask, read_volume
from medvae3d.errors import GridError, SettingError
from medvae3d.geometry import Grid
from medvae3d.models.latent import LatentModel
from medvae3d.objectives.terms import elbo
from medvae3d.probability.posteriors import DiagonalGaussian
from medvae3d.synthesis.filling import cut_box, labels_to_frame
from medvae3d.synthesis.frames import Frame
from medvae3d.synthesis.hosts import require_modality, require_room
from medvae3d.synthesis.makers import exact_float32, prepare
from medvae3d.synthesis.recipe import Recipe

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# How much of a scan, along an axis, may lie beyond the volume of the weights: margins of air, where
# the outermost values go on. Of more, nothing would be known.
MOST_BEYOND = 0.1


@dataclass(frozen=True, eq=False)
class PartialScan:
    """A scan that lacks some of its channels.

    Attributes:
        volumes: One volume a channel; ``None`` where there is none.
        label: Label map, :math:`(I, J, K)`; ``None`` if it is not known.
        name: What to call it in records.
    """

    volumes: tuple[Volume | None, ...]
    label: NDArray[np.integer[Any]] | None = field(repr=False)
    name: str

    @property
    def first(self) -> Volume:
        """The first volume that is there."""
        return next(volume for volume in self.volumes if volume is not None)

    @property
    def grid(self) -> Grid:
        """Where its voxels lie."""
        return self.first.grid

    @property
    def missing(self) -> tuple[int, ...]:
        """Numbers of the channels that it lacks."""
        return tuple(i for i, volume in enumerate(self.volumes) if volume is None)


@dataclass(frozen=True, eq=False)
class Imputed:
    r"""What was made for a scan.

    Attributes:
        channels: Native units on the scan's own voxels, :math:`(I, J, K)`, by channel number.
        effective_draws: :math:`1 / \sum_k \tilde w_k^2`: close to 1, one draw outweighed the
            rest; close to their number, all fit equally well.
        voxels_beyond: Voxels of the scan beyond the volume of the weights.
    """

    channels: Mapping[int, Floats] = field(repr=False)
    effective_draws: float
    voxels_beyond: int


def read_partial(
    files: Sequence[str | PathLike[str] | None],
    label: str | PathLike[str] | None,
    recipe: Recipe,
    name: str,
    *,
    of_any_size: bool = False,
) -> PartialScan:
    """Reads the channels that there are and checks that the weights can be used on them.

    Args:
        files: One file a channel, in the order of the recipe; ``None`` for one that is missing.
        label: Label map, if it is known.
        recipe: What the weights expect.
        name: What to call it.
        of_any_size: Whether the scan may be larger than the volumes that the weights make, as it
            may where the latent is a map.

    Raises:
        SettingError: If there are not as many channels as the weights have, or none or all of them
            are missing.
        UnreadableFileError: If a file is missing or broken.
        GridError: If a file is not 3D, or the scan is much smaller or larger than the volumes that
            the weights make.
        GridMismatchError: If the files do not lie on one grid.
        IntensityError: If a channel holds NaN, or is of another unit or modality.
        LabelError: If the label cannot be one.
    """
    names = ", ".join(channel.name for channel in recipe.channels)
    if len(files) != len(recipe.channels):
        raise SettingError(
            f"{name} has {len(files)} channels; these weights have {len(recipe.channels)}: "
            f"{names}. Name them all, in this order, those that are missing as null."
        )
    there = [file is not None for file in files]
    if all(there) or not any(there):
        raise SettingError(
            f"{name} has {'all' if all(there) else 'none'} of the channels {names}; one or more "
            f"have to be there, and one or more missing. Leave it out."
        )
    volumes = tuple(
        None if file is None else read_volume(file, what=f"{channel.name} of {name}")
        for file, channel in zip(files, recipe.channels, strict=True)
    )
    scan = PartialScan(volumes, None, name)
    first = scan.first
    for volume, channel in zip(volumes, recipe.channels, strict=True):
        if volume is not None:
            first.grid.require_same(volume.grid, this=str(first.path), that=str(volume.path))
            require_modality(volume, channel)
    require_room(first.grid, recipe, name=name)
    have, need = Frame.of(first.grid, recipe.spacing).shape, recipe.spatial_shape
    larger = any(n > wanted * (1 + MOST_BEYOND) for n, wanted in zip(have, need, strict=True))
    if larger and not of_any_size:
        mm = " x ".join(f"{s:g}" for s in recipe.spacing)
        raise GridError(
            f"{name} is {' x '.join(map(str, have))} voxels of {mm} mm (right, anterior, "
            f"superior); these weights make {' x '.join(map(str, need))}. Crop the scan to that "
            f"size, or train on scans of this one."
        )
    if label is None:
        return scan
    known = read_mask(label, recipe.values, what=f"label of {name}")
    first.grid.require_same(known.grid, this=str(first.path), that=str(label))
    return PartialScan(volumes, known.array, name)


def require_imputer(network: nn.Module, recipe: Recipe) -> LatentModel:
    """The network as one that can tell missing channels from others.

    Raises:
        SettingError: If it cannot.
    """
    way = "Take a bundle of a system such as vae or hvae, trained on several channels."
    if not isinstance(network, LatentModel) or network.encoder is None:
        raise SettingError(
            f"{type(network).__name__} has no encoder that reads an image, so it cannot tell one "
            f"channel from another. {way}"
        )
    if network.context is not None or "image" not in network.inputs or "image" not in network.heads:
        raise SettingError(
            f"these weights make an image from its surroundings or a mask alone, and not from its "
            f"other channels. {way}"
        )
    if len(recipe.channels) < 2 or network.image_channels != len(recipe.channels):
        raise SettingError(
            f"the weights have {network.image_channels} channels, the configuration "
            f"{len(recipe.channels)}; allowed are two or more, the same in both. {way}"
        )
    return network


def impute_channels(
    network: nn.Module,
    recipe: Recipe,
    scan: PartialScan,
    generators: Sequence[torch.Generator],
    *,
    draws: int = 1,
    likeliest: bool = False,
    class_name: str | None = None,
    device: torch.device | str = "cpu",
) -> list[Imputed]:
    """Makes the missing channels of a scan, once for each generator.

    Args:
        network: A latent model of image and mask.
        recipe: How its volumes are normalised, and on which grid.
        scan: The scan, in any orientation.
        generators: Noise of each imputation.
        draws: Draws :math:`K` from the posterior, of which one is picked by importance weight.
        likeliest: Whether to decode the mean of the posterior, without noise and grain.
        class_name: Class of the case, for models that are told one.
        device: Where to compute.

    Raises:
        SettingError: If the network cannot do it or is not told that class, or weights are asked
            for of a posterior without a density.
    """
    model = require_imputer(network, recipe)
    if draws < 1:
        raise SettingError(f"{draws} draws from the posterior; allowed is 1 or more.")
    prepare(model, device)
    frame = Frame.of(scan.grid, recipe.spacing)
    shape = _box_shape(model, recipe, frame.shape)
    start = _middle(frame.shape, shape)
    batch = {
        key: value.to(device)
        for key, value in _batch(model, recipe, scan, frame, start, shape, class_name).items()
    }
    found = []
    for generator in generators:
        with torch.no_grad(), exact_float32():
            image, effective = _draw(model, batch, generator, draws, likeliest)
        if not likeliest and _has_grain(model, recipe):
            image = image + model.grain.draw(image, generator)  # type: ignore[union-attr]
        native = recipe.to_native(image[None], model.statistics)[0].numpy()
        whole, beyond = _onto_scan(native[list(scan.missing)], frame, start)
        channels = dict(zip(scan.missing, whole, strict=True))
        found.append(Imputed(channels, effective, beyond))
    return found


def _has_grain(model: LatentModel, recipe: Recipe) -> bool:
    wanted = bool(recipe.synthesis.options.get("grain", True))
    return wanted and model.grain is not None and model.grain.is_fitted


def _box_shape(model: LatentModel, recipe: Recipe, have: Sequence[int]) -> tuple[int, int, int]:
    """Voxels that the model is shown: those of training, or all of a scan where it takes any."""
    shape = recipe.spatial_shape
    if not model.is_local:
        return shape
    strides = [n // m for n, m in zip(shape, model.latent_shape[1:], strict=True)]
    i, j, k = (
        max(wanted, math.ceil(n / step) * step)
        for n, wanted, step in zip(have, shape, strides, strict=True)
    )
    return i, j, k


def _middle(have: Sequence[int], size: Sequence[int]) -> tuple[int, int, int]:
    """First voxel of the box that training cuts out of a volume, or pads it to."""
    i, j, k = (
        n // 2 - wanted // 2 if n > wanted else -((wanted - n) // 2)
        for n, wanted in zip(have, size, strict=True)
    )
    return i, j, k


def _batch(
    model: LatentModel,
    recipe: Recipe,
    scan: PartialScan,
    frame: Frame,
    start: Sequence[int],
    shape: Sequence[int],
    class_name: str | None,
) -> dict[str, Tensor]:
    """What the model is shown, a batch of one."""
    rows, seen = [], []
    for volume, channel in zip(scan.volumes, recipe.channels, strict=True):
        if volume is None:
            rows.append(torch.full(frame.shape, FILL))
        else:
            native = torch.from_numpy(frame.to_frame(volume.array))
            rows.append(channel.intensity.normalize_with(native)[0])
        seen.append(float(volume is not None))
    image, inside = cut_box(torch.stack(rows), start, shape)
    valid = inside * torch.tensor(seen).reshape(-1, 1, 1, 1)
    mask = torch.zeros(1, *shape)
    if scan.label is not None:
        labels = torch.from_numpy(labels_to_frame(frame, scan.label, recipe)[None]).float()
        mask, _ = cut_box(labels, start, shape, 0)
    batch = {"image": image[None], "valid": valid[None], "mask": mask[None]}
    batch["mask_valid"] = torch.full((1, 1, 1, 1, 1), float(scan.label is not None))
    statistics = model.statistics
    given = None if class_name is None else statistics.of_class(class_name)
    if statistics.names and scan.label is not None:
        classes = [class_name] if statistics.classes else None
        measured = statistics.measure(mask[None], recipe.spacing, classes)
        batch["attributes"] = statistics.standardise(measured)
    elif given is not None:
        told = statistics.mean[None].clone().cpu()
        told[0, statistics.class_columns] = given
        batch["attributes"] = statistics.standardise(told)
    return batch


def _draw(
    model: LatentModel,
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    draws: int,
    likeliest: bool,
) -> tuple[Tensor, float]:
    """One image, ``(C, I, J, K)`` in network values, and the effective number of draws."""
    if likeliest:
        condition = model.condition(batch)
        heads = model.decode(model.encode(batch, condition).mean, condition)
        return heads["image"].mode().float().cpu()[0], 1.0
    weights, images = [], []
    for _ in range(draws):
        trace = model.trace(batch, generator)
        if draws > 1 and not isinstance(trace.posterior, DiagonalGaussian):
            raise SettingError(
                f"the posterior is a {type(trace.posterior).__name__}, which has no density, so "
                f"its draws have no importance weights. Leave out --draws, or take a bundle with a "
                f"Gaussian posterior."
            )
        images.append(trace.heads["image"].mode().float().cpu()[0])
        if draws > 1:
            weights.append(elbo(trace, batch).double().cpu())
    if draws == 1:
        return images[0], 1.0
    shares = torch.cat(weights).softmax(0)
    picked = int(torch.multinomial(shares, 1, generator=generator))
    return images[picked], float(1 / shares.square().sum())


def _onto_scan(native: Floats, frame: Frame, start: Sequence[int]) -> tuple[Floats, int]:
    """Brings a box onto the scan; its outermost voxels go on where the scan is larger.

    What was made beyond the scan is left out first: it was never trained, and interpolation would
    mix it in.
    """
    kept: list[slice] = [slice(None)]
    sides, pads, known = [], [(0, 0)], 1
    axes = zip(start, native.shape[1:], frame.shape, frame.steps, strict=True)
    for first, size, limit, step in axes:
        low, high = max(first, 0), min(first + size, limit)
        kept.append(slice(low - first, high - first))
        # As far beyond the border of the scan as interpolation reads there.
        margin = 1 + math.ceil(1 / step)
        pads.append((low + margin, limit - high + margin))
        sides.append(-margin)
        known *= high - low
    whole = np.pad(native[tuple(kept)], pads, mode="edge")
    moved, box = frame.to_host(whole, sides)
    result = np.zeros((len(native), *frame.host.shape), np.float32)
    result[(slice(None), *box)] = moved
    share = 1 - known / int(np.prod(frame.shape))
    return result, round(share * int(np.prod(frame.host.shape)))
