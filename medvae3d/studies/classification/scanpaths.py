r"""Paths of the eye as images: data that are no images, through the same models as volumes.

A scanpath is a list of fixations: where, in :math:`[0, 1]^2`, and how long. It is drawn as a map of
two channels, :math:`(2, I, J, 1)`: how long was looked where,

.. math:: h(u) = \sum_i d_i \exp\!\big(-|u - f_i|^2 / 2 s^2\big)

and how fast the eye went over each place. Networks with strides take maps of one voxel along K as
they take volumes. The gaze is simulated: two groups that look at the parts of a face with other
frequencies, as has been described of autism; nothing is learned from it about any patient.

References:
    In the style of Elbattah et al., J. Imaging 7(5):83, 2021.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medvae3d.seeding import derive_seed
from medvae3d.studies.classification.tasks import Task, task_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# Middle and spread of left eye, right eye, nose, mouth and of what lies around the face.
PLACES = np.array([(0.35, 0.35), (0.65, 0.35), (0.5, 0.52), (0.5, 0.7), (0.5, 0.5)])
SPREADS = np.array([0.05, 0.05, 0.05, 0.07, 0.28])
# How often each is looked at. Subjects differ among themselves (Dirichlet, this many counts), so
# that the groups overlap.
GROUPS = np.array([(0.28, 0.28, 0.14, 0.16, 0.14), (0.19, 0.19, 0.14, 0.26, 0.22)])
EVENNESS = 12.0
FIXATIONS = 24
STEPS = 24


@dataclass(frozen=True, eq=False)
class Scanpath:
    """One path of the eye.

    Attributes:
        fixations: Places in [0, 1], :math:`(F, 2)`.
        milliseconds: How long each was looked at, :math:`(F,)`.
    """

    fixations: Array = field(repr=False)
    milliseconds: Array = field(repr=False)


def simulate(group: int, habits: Array, rng: np.random.Generator) -> Scanpath:
    """One scanpath.

    Args:
        group: 0 or 1; those of group 1 also look a little shorter.
        habits: How often the subject looks at each place, ``(5,)``.
        rng: Random numbers.
    """
    count = int(rng.integers(FIXATIONS // 2, FIXATIONS + 1))
    where = rng.choice(len(PLACES), count, p=habits)
    fixations = PLACES[where] + SPREADS[where, None] * rng.normal(size=(count, 2))
    milliseconds = rng.lognormal(np.log(260 - 20 * group), 0.35, count)
    return Scanpath(fixations.clip(0, 1), milliseconds)


def render(path: Scanpath, side: int = 32, width: float = 0.04) -> Tensor:
    """Draws a scanpath; the same path gives the same map.

    Args:
        path: The path.
        side: Pixels along each axis.
        width: Deviation of a fixation, as a share of the side.

    Returns:
        Dwell time and speed from -1 to 1, :math:`(2, side, side, 1)`.
    """
    axis = (np.arange(side) + 0.5) / side

    def columns(places: Array, deviation: float) -> tuple[Array, Array]:
        i, j = (np.exp(-((axis - p[:, None]) ** 2) / (2 * deviation**2)) for p in places.T)
        return i, j

    i, j = columns(path.fixations, width)
    dwell = np.einsum("f,fi,fj->ij", path.milliseconds, i, j)
    # Speed is averaged over all passes, so that a place passed often is not one passed fast.
    ends = path.fixations
    share = (np.arange(STEPS) + 0.5) / STEPS
    points = (ends[:-1, None] + share[:, None] * (ends[1:] - ends[:-1])[:, None]).reshape(-1, 2)
    speed = np.linalg.norm(ends[1:] - ends[:-1], axis=1).repeat(STEPS)
    i, j = columns(points, 0.6 / side)
    passes, fast = (np.einsum("p,pi,pj->ij", w, i, j) for w in (np.ones(len(speed)), speed))
    faint = passes.max() * 1e-3 if len(speed) else 1.0
    passed = np.where(passes > faint, fast / np.maximum(passes, faint), 0.0)
    dwell = np.sqrt(dwell / max(float(dwell.max()), 1e-12))
    maps = np.stack([dwell, passed.clip(0, 1)])[..., None]
    return torch.from_numpy(2 * maps - 1).float()


def scanpath_task(
    seed: int = 0,
    training: int = 60,
    validation: int = 20,
    testing: int = 60,
    paths: int = 2,
    side: int = 32,
) -> Task:
    """Simulated subjects of two groups, half of each, with several scanpaths each.

    Args:
        seed: Seed of all.
        training: Subjects to train on.
        validation: Subjects to choose by.
        testing: Subjects that are judged.
        paths: Scanpaths of each subject.
        side: Pixels along each axis.
    """
    parts = []
    for split, count in (
        ("training", training), ("validation", validation), ("testing", testing)
    ):  # fmt: skip
        for index in range(count):
            group = index % 2
            rng = np.random.default_rng(derive_seed(seed, "scanpath", split, index))
            habits = rng.dirichlet(EVENNESS * GROUPS[group])
            for _ in range(paths):
                image = render(simulate(group, habits, rng), side)
                parts.append((image, group, f"{split} {index}", split))
    facts = {"simulated": True, "shape": [side, side, 1], "paths": paths}
    return task_of("scanpath", parts, ("group A", "group B"), facts)
