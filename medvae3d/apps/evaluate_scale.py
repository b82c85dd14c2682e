"""The scale of intensities of a report: one for all cases of a channel, or each case its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medvae3d.apps.evaluate_lists import CaseList
from medvae3d.errors import IntensityError

# Share of the voxels of all real cases that lies below and above of the common scale, in percent.
ROBUST = (0.1, 99.9)
# Voxels of a case and channel that the scale is found from.
SAMPLED = 50_000
# Between the brightest voxels of the 10th and the 90th percentile of the cases.
UNEVEN = 4.0


def schemes_of(
    items: Sequence[Mapping[str, Any]],
    channels: Sequence[str],
    intensity: str,
    listed: CaseList,
    told: list[str],
) -> list[dict[str, Any]]:
    """How each channel is scaled, as `medvae3d.data.intensity` reads it.

    Args:
        items: Real cases, in native units.
        channels: Names of the channels.
        intensity: ``range`` or ``percentile``.
        listed: Their list.
        told: Is added to, where one scale suits the cases badly.

    Raises:
        IntensityError: If there is no contrast in a channel.
    """
    if intensity == "percentile":
        return [{"kind": "percentile"} for _ in channels]
    schemes = []
    for number, channel in enumerate(channels):
        some = []
        for item in items:
            values = item["image"][number].as_tensor().flatten()
            some.append(values[:: max(1, len(values) // SAMPLED)].numpy())
        low, high = (float(v) for v in np.percentile(np.concatenate(some), ROBUST))
        tops = np.array([np.percentile(values, ROBUST[1]) for values in some])
        if float(tops.min()) > 0 and float(np.divide(*np.percentile(tops, (90, 10)))) > UNEVEN:
            told.append(
                f"{channel}: the brightest voxels of real cases differ {UNEVEN:g}-fold and more, "
                f"as in MR, whose scale has no unit; dark cases then look alike. Consider "
                f"--intensity percentile"
            )
        if not low < high:
            raise IntensityError(
                f"{listed.path}: {channel} is {low:g} in nearly all voxels of all real cases; "
                f"there is nothing to compare. Check the list with `medvae3d data check`."
            )
        schemes.append({"kind": "window", "low": low, "high": high})
    return schemes
