r"""Whether a sample is a copy of a training case.

The distance of two images is the root of their mean squared difference on :math:`(x + 1) / 2`, over
the voxels that were observed in both, that of two masks one minus their Dice, each the smallest
over the eight combinations of flips. How near real cases lie to each other says how near is too
near:

.. math:: d(a) = \min_{b, f} \| a - f(b) \|, \qquad \text{share} = P\big[d(s) < q_{1\%}(d(r))\big]

for samples :math:`s` and training cases :math:`r`, each against all other training cases.

`copy_check` is that alone. `privacy_section` also allows shifts, looks into latents, compares with
held-out cases, asks whether membership can be told, and plants copies that it has to find.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.casewise import by_case, require_apart
from medvae3d.evaluation.copies import (
    DRAWS,
    PERCENT,
    Encode,
    Space,
    held_out_ratio,
    latent_space,
    pose_space,
    share,
)
from medvae3d.evaluation.intervals import mean_interval
from medvae3d.evaluation.membership import judged_membership, membership_auc
from medvae3d.evaluation.planted import COPIES, GAIN, NOISE, planted_copies
from medvae3d.evaluation.poses import KINDS, Nearest, Search
from medvae3d.evaluation.privacy_verdicts import judged_copied, judged_memorised, judged_tested
from medvae3d.evaluation.sections import Distribution, Measure, Section
from medvae3d.evaluation.voxelwise import unit

FLIPS = [axes for n in range(4) for axes in itertools.combinations((2, 3, 4), n)]


def nearest(cases: Cases, train: Cases, *, same: bool = False) -> dict[str, Tensor]:
    """Distance of each case to the nearest training case, by image and by mask, ``(N,)``.

    Args:
        cases: What is judged.
        train: What it may have been copied from.
        same: Whether both are the same set: then a case is not compared with itself, flipped or
            not.
    """
    image = torch.full((len(cases),), torch.inf, dtype=torch.float64)
    mask = image.clone()
    known, seen = _observed(train)
    masks = (train.mask > 0).flatten(1).float()
    for axes in FLIPS:
        x, valid = _observed(cases, axes)
        # The sum over voxels observed in both of (x - y)^2, taken apart into products of matrices.
        squared = x.square() @ seen.T + valid @ known.square().T - 2 * (x @ known.T)
        count = valid @ seen.T
        apart = torch.where(count > 0, squared.clamp_min(0) / count, torch.inf).double().sqrt()
        m = (cases.mask > 0).flip(axes).flatten(1).float()
        both = m.sum(1)[:, None] + masks.sum(1)
        overlap = 1 - 2 * (m @ masks.T).double() / both.clamp_min(1)
        if same:
            apart.fill_diagonal_(torch.inf)
            overlap.fill_diagonal_(torch.inf)
        image = torch.minimum(image, apart.amin(1))
        mask = torch.minimum(mask, overlap.amin(1))
    return {"image": image, "mask": mask}


def _observed(cases: Cases, flips: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Images, 0 where not observed, and where they were, ``(N, D)`` each."""
    valid = (cases.valid > 0).float().flip(flips).expand_as(cases.image)
    return (unit(cases.image.flip(flips)) * valid).flatten(1), valid.flatten(1)


class CopyCheck:
    """`copy_check` for several sets of samples; distances between real cases are taken once.

    Args:
        train: Training cases; at least two.
        unseen: Cases that were not trained on, as a control that the check does not cry wolf.
    """

    def __init__(self, train: Cases, unseen: Cases | None = None) -> None:
        self.train = train
        is_known = len(train) > 1
        self._real = nearest(train, train, same=True) if is_known else {}
        self._unseen = nearest(unseen, train) if is_known and unseen is not None else None

    def __call__(self, made: Cases) -> dict[str, Any]:
        """Share of samples that are too near, as `copy_check` gives it."""
        counts = {"train": len(self.train), "samples": len(made)}
        if not self._real:
            return counts
        sets = {"samples": nearest(made, self.train)}
        if self._unseen is not None:
            sets["unseen"] = self._unseen
        rows: dict[str, dict[str, float]] = {}
        for kind in ("image", "mask"):
            real = self._real[kind]
            limit = float(np.percentile(real.numpy(), PERCENT))
            rows[kind] = {"limit": limit, "training to training": float(real.median())}
            for name, distance in sets.items():
                rows[kind][f"{name} to training"] = float(distance[kind].median())
                below = distance[kind] < limit
                rows[kind][f"share of {name} below"] = float(below.double().mean())
        return {**counts, "rows": rows}


def copy_check(made: Cases, train: Cases, unseen: Cases | None = None) -> dict[str, Any]:
    """Share of samples nearer to a training case than one in a hundred of those is to another.

    Args:
        made: Samples.
        train: Training cases; at least two.
        unseen: Cases that were not trained on, as a control that the check does not cry wolf.

    Returns:
        By ``image`` and ``mask``: the limit, the median distances, and the shares below the limit.
        A share is ``None`` where no two training cases can be compared.
    """
    return CopyCheck(train, unseen)(made)


LogLikelihood = Callable[[Cases], Tensor]
"""Cases to the log likelihood, or a bound on it, that a model gives each of them, ``(N,)``."""

NAME, TITLE = "privacy", "Privacy: copies of training cases, and who was among them"
TEXT = (
    "Each sample is compared with every training case, mirrored along any axes and moved by a few "
    "voxels. How near training cases lie to each other says how near is too near. Samples of a "
    "generator that has memorised lie nearer to training than to held-out cases (ratio below 1, "
    "share above a half), and its training cases can be told from held-out ones (AUC above a "
    "half). Copies that were planted among the samples say whether the check would have found any."
)


def privacy_section(
    train: Cases,
    synthetic: Cases,
    reference: Cases | None,
    *,
    encode: Encode | None = None,
    log_likelihood: LogLikelihood | None = None,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    search: Search | None = None,
) -> Section:
    """Says whether samples are copies of training cases, and whether membership can be told.

    Args:
        train: Training cases.
        synthetic: Samples.
        reference: Real cases that were not trained on; without them there is no ratio and no
            membership.
        encode: Cases to latents; without it there is no latent space.
        log_likelihood: Cases to their log likelihood under the model.
        seed: Seed of intervals and of planted copies.
        progress: Called with comparisons done and wanted.
        search: How poses are searched.

    Raises:
        DataListError: If a held-out case is a training case.
        GridMismatchError: If the sets have other channels or shapes.
    """
    section = Section(NAME, TITLE, TEXT)
    held = reference if reference is not None and len(reference) else None
    if held is not None:
        require_apart(train, held, what="held-out")
    if len(train) < 2 or not len(synthetic):
        section.not_computed = (
            f"{len(train)} training cases and {len(synthetic)} samples; two of the former are "
            f"needed to say how near is too near, and one of the latter"
        )
        return section
    search = search or Search()
    planted = planted_copies(train, seed)
    done, wanted = 0, len(KINDS) * (4 if held is not None else 2)

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, wanted)

    spaces = {
        kind: pose_space(kind, train, synthetic, planted, held, search, step) for kind in KINDS
    }
    if encode is not None:
        spaces["latent"] = latent_space(encode, train, synthetic, planted, held, spaces["image"])
    section.tables["Distance to the nearest training case"] = {
        name: _distances(space, seed) for name, space in spaces.items()
    }
    ratios = _ratios(spaces, seed)
    section.tables["Training against held-out cases"] = ratios
    members = _membership(train, held, spaces, log_likelihood, seed)
    section.tables["Membership inference"] = {name: {"AUC": each} for name, each in members.items()}
    section.tables["Self-test"] = {name: _self_test(space) for name, space in spaces.items()}

    section.facts = _facts(search, train, planted)
    nearest_names = {
        name: [train.names[int(i)] for i in space.samples.index] for name, space in spaces.items()
    }
    section.facts["nearest"] = {
        sample: {
            name: nearest_names[name][row]
            for name, space in spaces.items()
            if bool(torch.isfinite(space.samples.distance[row]))
        }
        for row, sample in enumerate(synthetic.names)
    }
    section.cases["synthetic"] = by_case(synthetic.names, _columns(spaces, "samples"))
    if held is not None:
        section.cases["reference"] = by_case(held.names, _columns(spaces, "reference"))
    section.distributions = [_drawn(name, space) for name, space in spaces.items()]
    # Without images, such as for masks alone, the mask is what could have been copied.
    first = "image" if spaces["image"].limit is not None else "mask"
    section.verdicts = [judged_copied(name, space) for name, space in spaces.items()]
    section.verdicts += [judged_tested(name, space) for name, space in spaces.items()]
    section.verdicts.append(judged_memorised(ratios[first]["share nearer to training"]))
    section.verdicts.append(judged_membership(members))
    if held is None:
        section.warnings.append(
            "No held-out cases: the ratio, membership and false alarms could not be looked at."
        )
    return section


def _distances(space: Space, seed: int) -> dict[str, Measure]:
    """One row of distances and of the share below the limit."""
    limit, count = space.limit, len(space.train.distance)
    note = "" if limit is not None else "training cases cannot be told apart, or show nothing"
    sets = {"training to training": space.train, "samples": space.samples}
    if space.reference is not None:
        sets["held-out"] = space.reference
    row = {"limit": Measure(limit, n=count, note=note)}
    for name, found in sets.items():
        known = found.distance[torch.isfinite(found.distance)]
        row[name] = Measure.of(
            mean_interval(known, seed), "mean over cases" if len(known) else note
        )
    if limit is None:
        return row | {
            "share of samples below": Measure(None, n=len(space.samples.distance), note=note)
        }
    flagged = share(space.flagged(space.samples))
    if space.reference is not None:
        floor = share(space.flagged(space.reference))
        flagged = Measure(
            flagged.value, flagged.low, flagged.high, flagged.n, floor.value, floor.low, floor.high,
            "floor: held-out cases",
        )  # fmt: skip
    return row | {"share of samples below": flagged}


def _ratios(spaces: dict[str, Space], seed: int) -> dict[str, dict[str, Measure]]:
    rows = {}
    for name, space in spaces.items():
        if space.to_reference is None:
            ratio = split = Measure(None, note="no held-out cases")
        else:
            ratio, split = held_out_ratio(space.to_train, space.to_reference, seed)
        rows[name] = {"distance ratio": ratio, "share nearer to training": split}
    return rows


def _membership(
    train: Cases,
    held: Cases | None,
    spaces: dict[str, Space],
    log_likelihood: LogLikelihood | None,
    seed: int,
) -> dict[str, Measure]:
    """AUC by what the score is: the distance to the nearest sample, and the likelihood."""
    if held is None:
        return {"nearest sample, image": Measure(None, note="no held-out cases")}
    rows = {}
    for name, space in spaces.items():
        if space.to_reference is not None:
            known, other = (-x.amin(0).numpy() for x in (space.to_train, space.to_reference))
            known, other = (np.where(np.isfinite(x), x, np.nan) for x in (known, other))
            rows[f"nearest sample, {name}"] = membership_auc(known, other, seed)
    if log_likelihood is not None:
        scores = []
        for cases in (train, held):
            found = torch.as_tensor(log_likelihood(cases)).detach().cpu().double()
            if found.shape != (len(cases),):
                raise SettingError(
                    f"the log likelihood of {len(cases)} cases has shape {tuple(found.shape)}; one "
                    f"number a case is needed. Sum over voxels and channels, not over cases."
                )
            scores.append(found.numpy())
        rows["likelihood"] = membership_auc(scores[0], scores[1], seed)
    return rows


def _self_test(space: Space) -> dict[str, Measure]:
    if space.limit is None:
        note = "no limit: training cases cannot be told apart, or show nothing"
        return {"planted copies flagged": Measure(None, note=note)}
    flags = space.flagged(space.planted)
    row = {"planted copies flagged": share(flags, f"{int(flags.sum())} of {len(flags)}")}
    if space.reference is not None:
        flags = space.flagged(space.reference)
        row["held-out cases flagged"] = share(flags, f"{int(flags.sum())} of {len(flags)}")
    return row


def _columns(spaces: dict[str, Space], which: str) -> dict[str, list[float | None]]:
    """Distance, row of the nearest training case and flag, by case."""
    columns: dict[str, list[float | None]] = {}
    for name, space in spaces.items():
        found: Nearest = getattr(space, which)
        finite = torch.isfinite(found.distance).tolist()
        numbers = {
            f"{name} distance": found.distance.tolist(),
            f"{name} nearest row": found.index.tolist(),
            f"{name} flagged": space.flagged(found).int().tolist(),
        }
        for key, values in numbers.items():
            pairs = zip(values, finite, strict=True)
            columns[key] = [float(value) if known else None for value, known in pairs]
    return columns


def _drawn(name: str, space: Space) -> Distribution:
    sets = {"training to training": space.train, "synthetic": space.samples}
    if space.reference is not None:
        sets["held-out"] = space.reference
    values = {
        key: found.distance[torch.isfinite(found.distance)].tolist() for key, found in sets.items()
    }
    return Distribution(f"distance to the nearest training case, {name}", "", values)


def _facts(search: Search, train: Cases, planted: Cases) -> dict[str, Any]:
    shape = train.image.shape[2:]
    factor = search.factor(shape)
    return {
        "search_voxels": [-(-n // factor) for n in shape],
        "flips": "all eight combinations of the three axes",
        "largest_shift_voxels": search.reach,
        "refined_at_full_size": f"{search.refined} nearest poses on the small volumes, and both "
        f"flips of {search.alike} cases that are most alike whatever the shift",
        "all_pairs": "ratio and membership use the distances on the small volumes",
        "limit_percentile": PERCENT,
        "planted": {
            "copies": len(planted),
            "wanted": COPIES,
            "how": "mirrored, moved by 1 or 2 voxels along each axis",
            "noise_deviation_of_the_range_of_a_case": NOISE,
            "gain": GAIN,
        },
        "ratio_draws": DRAWS,
    }
