r"""Generative active learning: synthetic images that look like real ones go back into the training.

In each cycle a generator is fitted on :math:`D_t`, real images and what was kept so far, and makes
candidates :math:`g`. A filter, a VAE fitted on the real training images :math:`x_i` alone, says
which are kept: those of largest

.. math:: s(g) = -\min_i \| \mu(g) - \mu(x_i) \| \quad \text{or} \quad
    s(g) = \max_i \cos(\mu(g), \mu(x_i))

but none that lies nearer to a real image than one in a hundred of those does to another: the filter
by itself favours copies. Then :math:`D_{t+1} = D_t + \text{kept}`, with all real images and at most
half synthetic ones. A cycle after which a classifier does worse on real validation images is taken
back, and ends the loop. Validation images are classified, never encoded: nothing is selected by
them.

Every cycle is written to disk when it is over. A loop that goes on from there keeps the same set.

References:
    Lee et al., generative active learning for a small set of radiographs, IEEE CAI 2024; the cycle
    is in the style of that work, with a VAE as the generator and bounds of our own.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medvae3d.data.volumes import write_bytes
from medvae3d.errors import SettingError
from medvae3d.evaluation.two_sample import frechet, neighbours, neighbours_for
from medvae3d.seeding import derive_generator, derive_seed
from medvae3d.studies.classification.tasks import Images
from medvae3d.training.checkpoints import load_state

BY = ("similarity", "random")
SIMILARITIES = ("distance", "cosine")


@dataclass(frozen=True)
class SelectionSettings:
    """How much is kept, and when the loop ends.

    Attributes:
        cycles: Most cycles.
        growth: Images kept in a cycle for each real one.
        share: Share of the candidates that is kept.
        near_percent: Percentile of the distances between real images below which a candidate is a
            near-copy.
        most_synthetic: Largest share of synthetic images.
        tolerance: By how much the Brier score on validation may rise in a cycle.
        similarity: ``distance`` or ``cosine``. The cosine does not see how long a latent is, and
            so also keeps images far from every real one.
    """

    cycles: int = 3
    growth: float = 0.34
    share: float = 0.2
    near_percent: float = 1.0
    most_synthetic: float = 0.5
    tolerance: float = 0.0
    similarity: str = "distance"

    def __post_init__(self) -> None:
        if self.cycles < 1 or not 0 < self.share <= 1 or self.growth <= 0:
            raise SettingError(
                f"selection has {self.cycles} cycles, share {self.share}, growth {self.growth}; "
                f"allowed are cycles from 1 on, a share above 0 and up to 1, a growth above 0."
            )
        if not 0 <= self.most_synthetic <= 0.5:
            raise SettingError(
                f"selection has most_synthetic {self.most_synthetic}; at most half of the images "
                f"may be synthetic. Set it between 0 and 0.5."
            )

        if self.similarity not in SIMILARITIES:
            raise SettingError(
                f"selection has similarity {self.similarity!r}; allowed are "
                f"{', '.join(SIMILARITIES)}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Sampler(Protocol):
    """A generator of either class."""

    def sample(self, count: int, seed: int) -> Images: ...


@dataclass(frozen=True)
class Tools:
    """What a cycle works with.

    Attributes:
        fit: Images and seed to a generator.
        encode: Images to latents, by the filter.
        validate: What was kept, to the Brier score of a classifier on real validation images.
    """

    fit: Callable[[Images, int], Sampler]
    encode: Callable[[Tensor], Tensor]
    validate: Callable[[Images | None], float]


@dataclass(frozen=True, eq=False)
class Kept:
    """What the loop came to.

    Attributes:
        images: Synthetic images that were kept; ``None`` for none.
        cycles: What was found in each cycle: ``kept``, ``near_copies``, ``frechet``, ``recall``,
            ``brier`` and whether it was ``accepted``.
    """

    images: Images | None = field(repr=False)
    cycles: tuple[dict[str, Any], ...]

    @property
    def was_halted(self) -> bool:
        """Whether the rule ended the loop."""
        return bool(self.cycles) and not self.cycles[-1]["accepted"]


def select(
    real: Images,
    tools: Tools,
    settings: SelectionSettings,
    seed: int,
    by: str = "similarity",
    folder: Path | None = None,
) -> Kept:
    """Runs the loop, or goes on with it.

    Args:
        real: Real training images; all of them are always kept.
        tools: Generator, filter and validation.
        settings: How much is kept.
        seed: Seed of all.
        by: ``similarity``, or ``random``: as many, whichever they are, as a control.
        folder: Where cycles are written; nowhere by default.

    Raises:
        SettingError: If ``by`` is unknown.
    """
    if by not in BY:
        raise SettingError(f"selection by {by!r}; allowed are {', '.join(BY)}.")
    kept: Images | None = None
    reports: list[dict[str, Any]] = []
    best = None
    known = _Real(real, tools, settings)
    for cycle in range(1, settings.cycles + 1):
        file = folder / f"cycle_{cycle}.pt" if folder is not None else None
        if file is not None and file.is_file():
            state = load_state(file)
            chosen, report = Images(state["x"], state["y"]), state["report"]
        else:
            best = tools.validate(kept) if best is None else best
            chosen, report = known.cycle(kept, cycle, seed, by)
            if not len(chosen):
                break
            brier = tools.validate(chosen if kept is None else kept.joined(chosen))
            report |= {"brier": brier, "brier_before": best}
            report["accepted"] = brier <= best + settings.tolerance
            if file is not None:
                _write(file, chosen, report)
        reports.append(report)
        if not report["accepted"]:
            break
        best = report["brier"]
        kept = chosen if kept is None else kept.joined(chosen)
    return Kept(kept, tuple(reports))


class _Real:
    """The real images, as the filter sees them."""

    def __init__(self, real: Images, tools: Tools, settings: SelectionSettings) -> None:
        self.real, self.tools, self.settings = real, tools, settings
        self.codes = [tools.encode(real.of_class(value)).double() for value in (0, 1)]
        self.limits = [copy_limit(codes, settings.near_percent) for codes in self.codes]

    def cycle(
        self, kept: Images | None, cycle: int, seed: int, by: str
    ) -> tuple[Images, dict[str, Any]]:
        settings = self.settings
        generator = self.tools.fit(self.real.joined(kept), derive_seed(seed, "cycle", cycle))
        counts = [self._count(kept, value) for value in (0, 1)]
        count = min(counts)
        wanted = max(1, round(count / settings.share))
        made = generator.sample(wanted, derive_seed(seed, "candidates", cycle))
        parts, codes, near = [], [], []
        for value in (0, 1):
            x = made.of_class(value)
            z = self.tools.encode(x).double()
            is_near = torch.cdist(z, self.codes[value]).amin(1) < self.limits[value]
            if by == "random":
                order = derive_generator(seed, "random choice", cycle, value)
                rows = torch.randperm(len(x), generator=order)[:count]
            else:
                rows = most_similar(z, self.codes[value], is_near, settings.similarity)[:count]
            parts.append((x[rows], rows.new_full((len(rows),), value)))
            codes.append(z[rows])
            near.append(is_near.double().mean())
        # The same number of each class, also where a class has too few that are no copies.
        least = min(len(x) for x, _ in parts)
        chosen = Images(
            torch.cat([x[:least] for x, _ in parts]), torch.cat([y[:least] for _, y in parts])
        )
        report = {
            "cycle": cycle,
            "candidates": 2 * wanted,
            "kept": len(chosen),
            "near_copies": float(torch.stack(near).mean()),
            **self._distances(torch.cat([z[:least] for z in codes])),
        }
        return chosen, report

    def _count(self, kept: Images | None, value: int) -> int:
        settings = self.settings
        real = len(self.codes[value])
        most = int(real * settings.most_synthetic / (1 - settings.most_synthetic))
        before = 0 if kept is None else int((kept.y == value).sum())
        return max(0, min(max(1, round(settings.growth * real)), most - before))

    def _distances(self, codes: Tensor) -> dict[str, float | None]:
        real, made = torch.cat(self.codes).numpy(), codes.numpy()
        if len(made) < 4:
            return {"frechet": None, "recall": None}
        k = neighbours_for(min(len(real), len(made)))
        return {
            "frechet": frechet(real, made, shrink=len(made) <= made.shape[1]),
            "recall": float(neighbours(real, made, k).recall.mean()),
        }


def copy_limit(codes: Tensor, percent: float) -> float:
    """Distance to the nearest other image that one in a hundred images stays under."""
    apart = torch.cdist(codes, codes)
    apart.fill_diagonal_(torch.inf)
    return float(np.percentile(apart.amin(1).numpy(), percent))


def most_similar(z: Tensor, real: Tensor, is_near: Tensor, kind: str) -> Tensor:
    """Rows by falling similarity to a real image, near-copies left out."""
    if kind == "cosine":
        similarity = (F.normalize(z, dim=1) @ F.normalize(real, dim=1).T).amax(1)
    else:
        similarity = -torch.cdist(z, real).amin(1)
    order = torch.argsort(similarity, descending=True, stable=True)
    return order[~is_near[order]]


def _write(file: Path, chosen: Images, report: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save({"x": chosen.x.contiguous(), "y": chosen.y, "report": report}, buffer)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, buffer.getvalue())
