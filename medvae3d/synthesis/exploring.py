r"""Paths through what a model knows: from one case to another, along one attribute, over classes.

Between two latents :math:`a` and :math:`b` at :math:`t \in [0, 1]`: straight,
:math:`(1 - t)\,a + t\,b`; on a sphere,

.. math:: \frac{\sin((1 - t)\,\omega)}{\sin \omega}\, a + \frac{\sin(t\,\omega)}{\sin \omega}\, b,
   \qquad \cos \omega = \frac{a^\top b}{\|a\| \|b\|},

which keeps the length that a draw of a standard normal has; or the shortest path under the metric
of a Riemannian model. Along a volume, one draw of the prior is moved by what an attribute says of
the latent within a component, :math:`z(a) = z(a_0) + (a - a_0)\,\Sigma_{aa}^{-1}
\Sigma_{as} W`, so that all else stays; asked anew at each volume, the prior would jump from one
component to the next. Over classes, one latent is decoded as each class: what changes is what the
decoder knows of the class, and what stays is what the latent holds.

References:
    Shoemake, "Animating rotation with quaternion curves", 1985, for the path on a sphere.
    Chadebec and Allassonniere, NeurIPS 2022, for the path under a metric.
    Sohn, Lee and Yan, NeurIPS 2015, and Pesteie et al., IEEE TMI 2019, for models told a class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.flows.geodesics import geodesic
from medvae3d.models.latent import Condition, LatentModel
from medvae3d.probability.priors import MixturePrior
from medvae3d.seeding import derive_generator
from medvae3d.synthesis.kinds import make_maker
from medvae3d.synthesis.makers import Maker, Settings, exact_float32
from medvae3d.synthesis.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WAYS = ("linear", "spherical", "geodesic")


@dataclass(frozen=True, eq=False)
class Frame:
    """One volume on a path.

    Attributes:
        title: Where on the path it is.
        image: Native units, :math:`(C, I, J, K)`.
        label: Label map, :math:`(I, J, K)`.
    """

    title: str
    image: NDArray[Any] = field(repr=False)
    label: NDArray[np.uint8] = field(repr=False)


def straight(a: Tensor, b: Tensor, shares: Sequence[float]) -> Tensor:
    """Points of the straight line, ``(P, ...)``."""
    return torch.stack([torch.lerp(a, b, float(t)) for t in shares])


def on_sphere(a: Tensor, b: Tensor, shares: Sequence[float]) -> Tensor:
    """Points of the arc, ``(P, ...)``; the straight line where both point the same way."""
    x, y = a.flatten().double(), b.flatten().double()
    cosine = float((x @ y) / (x.norm() * y.norm()).clamp_min(1e-12))
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < 1e-4:
        return straight(a, b, shares)
    points = [
        (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle) for t in shares
    ]
    return torch.stack(points).to(a).reshape(len(shares), *a.shape)


def path_between(
    model: LatentModel, a: Tensor, b: Tensor, points: int, way: str = "linear"
) -> Tensor:
    """Latents from one to another, both ends among them, ``(P, ...)``.

    Args:
        model: Whose latents they are; its flow has the metric of a geodesic.
        a: First latent.
        b: Last latent.
        points: Number of points.
        way: One of `WAYS`.

    Raises:
        SettingError: If the way is unknown, or the model has no metric.
    """
    if way not in WAYS:
        raise SettingError(f"the way is {way!r}; allowed are {', '.join(WAYS)}. Name one of them.")
    if points < 2:
        raise SettingError(f"{points} points were asked for; a path has 2 or more.")
    if way == "geodesic":
        metric = getattr(model.flow, "metric", None)
        if metric is None:
            raise SettingError(
                "a geodesic needs the metric of a Riemannian model, and this model has none. Take "
                "linear or spherical, or a bundle of the system rhvae."
            )
        return geodesic(metric, a, b, points)
    shares = [index / (points - 1) for index in range(points)]
    return (straight if way == "linear" else on_sphere)(a, b, shares)


@torch.inference_mode()
def between(
    model: LatentModel,
    recipe: Recipe,
    batch: Mapping[str, Any],
    points: int,
    way: str = "linear",
    advance: Callable[[int, int], None] = lambda done, wanted: None,
) -> list[Frame]:
    """Volumes from one real case to another.

    What the model is told goes from that of the first case to that of the second in even steps.

    Args:
        model: In evaluation mode.
        recipe: Channels and labels.
        batch: Two cases, as the model reads them.
        points: Volumes, both ends among them.
        way: One of `WAYS`.
        advance: Told volumes made and wanted.
    """
    condition = model.condition(batch)
    means = model.encode(batch, condition).mode()
    with torch.inference_mode(False), torch.enable_grad():
        path = path_between(model, means[0].clone(), means[1].clone(), points, way).detach()
    told = condition.attributes
    frames = []
    with exact_float32():
        for index, z in enumerate(path):
            share = index / (points - 1)
            row = None if told is None else torch.lerp(told[:1], told[1:], share)
            heads = model.decode(z[None].float(), Condition(row))
            image = recipe.to_native(heads["image"].mode().float(), model.statistics)[0]
            label = heads["mask"].mode()[0, 0].to(torch.uint8)
            frames.append(Frame(f"{100 * share:.0f} %", image.cpu().numpy(), label.cpu().numpy()))
            advance(index + 1, points)
    return frames


@torch.inference_mode()
def as_classes(
    model: LatentModel,
    recipe: Recipe,
    names: Sequence[str],
    batch: Mapping[str, Any] | None = None,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
    advance: Callable[[int, int], None] = lambda done, wanted: None,
) -> list[Frame]:
    """One latent decoded as each class: a real case, or a draw, as it were had it been another.

    All else that the model is told stays, and no grain is added, so that volumes differ in what the
    decoder makes of the class alone.

    Args:
        model: A model that is told classes, in evaluation mode.
        recipe: Channels and labels.
        names: Two classes or more; a draw is one of the first.
        batch: One case, as the model reads it; ``None`` for a draw of the prior.
        seed: Seed of the draw.
        device: Where to compute.
        advance: Told volumes made and wanted.

    Raises:
        SettingError: If the model is told no class, or none of that name, or there are fewer than
            two.
    """
    statistics = model.statistics
    if not statistics.classes:
        raise SettingError(
            "this model is told no class, so that nothing can be made as another one. Take a "
            "bundle of the system cvae or icvae."
        )
    if len(set(names)) != len(names) or len(names) < 2:
        raise SettingError(
            f"the classes are {', '.join(names) or 'none'}; two different ones or more are needed, "
            f"of {', '.join(statistics.classes)}. Name them."
        )
    rows = [statistics.of_class(name) for name in names]
    if batch is not None:
        condition = model.condition(batch)
        z, told = model.encode(batch, condition).mode(), condition.attributes
    else:
        temperature = recipe.synthesis.temperature
        settings = Settings(seed, temperature, None, False, None, {}, names[0])
        maker = make_maker(model, recipe, settings, torch.device(device))
        (draft,) = maker.drafts([0], 0)
        told = maker.attributes([draft])
        prior = model.sampling_prior
        known = told if prior is not None and prior.attributes else None
        z = model.sample_latent(1, known, [draft.generator], temperature).to(device)
    if told is None:
        raise SettingError("the case carries no attributes. Prepare it with those of its mask.")
    frames = []
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        as_class = told.clone()
        columns = statistics.class_columns
        natural = told.new_zeros(len(statistics.names))
        natural[columns] = row.to(natural)
        as_class[:, columns] = statistics.standardise(natural)[columns]
        with exact_float32():
            heads = model.decode(
                z.float(), model.blank(1, recipe.spatial_shape, as_class, z.device)
            )
        image = recipe.to_native(heads["image"].mode().float(), statistics)[0].cpu().numpy()
        label = heads["mask"].mode()[0, 0].to(torch.uint8).cpu().numpy()
        frames.append(Frame(name, image, label))
        advance(index + 1, len(names))
    return frames


def changes(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    """How each volume differs from the first: Dice of the masks, and the mean absolute change.

    The change is in native units by channel, inside of either mask and outside of both; ``None``
    where there is no such voxel.
    """
    first, rows = frames[0], []
    for each in frames[1:]:
        one, other = first.label > 0, each.label > 0
        both, either = int((one & other).sum()), one | other
        apart = abs(each.image.astype(float) - first.image)
        parts = {"inside": either, "outside": ~either}
        rows.append(
            {
                "volume": each.title,
                "dice": 2 * both / max(1, int(one.sum()) + int(other.sum())),
                **{
                    f"change_{name}": [float(c[part].mean()) if part.any() else None for c in apart]
                    for name, part in parts.items()
                },
            }
        )
    return rows


@torch.inference_mode()
def grown(
    model: LatentModel,
    recipe: Recipe,
    volumes_ml: Sequence[float],
    seed: int,
    *,
    extrapolate: bool = False,
    device: torch.device | str = "cpu",
    advance: Callable[[int, int], None] = lambda done, wanted: None,
) -> list[Frame]:
    """One draw of a joint model at several volumes, with everything else as it is.

    Args:
        model: A joint model whose prior is a fitted `MixturePrior` that is told the volume.
        recipe: What it makes.
        volumes_ml: The volumes, in any order; the draw is made at the middle one.
        seed: Seed of the draw.
        extrapolate: Whether volumes may lie beyond the training set.
        device: Where to compute.
        advance: Told volumes made and wanted.

    Raises:
        SettingError: If the model is told no volume, or its prior is another one.
        RangeError: If a volume leaves the range of the training set.
    """
    prior = model.sampling_prior
    if not isinstance(prior, MixturePrior) or not prior.attributes or not bool(prior.fitted):
        raise SettingError(
            "its prior is not a mixture that was fitted together with the volume, so that a draw "
            "cannot be moved along it. Train with attributes and prior=mixture."
        )
    middle = sorted(volumes_ml)[len(volumes_ml) // 2]
    first = _maker(model, recipe, middle, seed, extrapolate, device)
    generator = derive_generator(seed, "volume path")
    start = first.attributes(first.drafts([0], 0))
    z = model.sample_latent(1, start, [generator], recipe.synthesis.temperature)
    slope = prior.slope
    frames = []
    for index, volume in enumerate(volumes_ml):
        maker = _maker(model, recipe, volume, seed, extrapolate, device)
        (draft,) = maker.drafts([0], 0)
        told = maker.attributes([draft])
        if told is None or start is None:
            raise SettingError("this model is told no volume; it makes masks of any size.")
        step = ((told - start).double() @ slope).reshape(z.shape).to(z) / model.latent_scale
        with exact_float32():
            heads = model.decode(z + step, Condition(told))
        maker.cut(draft, heads["mask"].logits[0].float().cpu().numpy())
        image = heads["image"].mode().float()[0]
        draft.generator = derive_generator(seed, "volume path", "grain")  # the same at each volume
        draft.image = maker.with_grain(model, image, draft)
        labels, images = maker.finish([draft])
        label = labels[0, 0].numpy().astype("uint8")
        frames.append(Frame(f"{volume:.3g} ml", images[0].numpy(), label))
        advance(index + 1, len(volumes_ml))
    return frames


def _maker(
    model: LatentModel,
    recipe: Recipe,
    volume: float,
    seed: int,
    extrapolate: bool,
    device: torch.device | str,
) -> Maker:
    temperature = recipe.synthesis.temperature
    settings = Settings(seed, temperature, (volume, volume), extrapolate, None, {})
    return make_maker(model, recipe, settings, torch.device(device))
