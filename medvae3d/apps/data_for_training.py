"""Whether a data list can be trained on: everything is looked at before anything is begun."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from medvae3d.data.attributes import CLASS
from medvae3d.data.datalists import DataList, require_class
from medvae3d.data.integrity import CaseReport, Finding, IntegrityReport, check
from medvae3d.data.intensity import intensity_from_config
from medvae3d.errors import DataListError, IntensityError, UnreadableFileError

READ_IN_TRAINING = ("training", "validation")
# Findings that training cannot live with; the others are told and let through.
SHOWN = 5
FATAL = {"grid", "label", "nan", "constant", "channels"}


def require_trainable(
    datalist: DataList, settings: Mapping[str, Any], report: IntegrityReport | None = None
) -> list[str]:
    """Reads every case and refuses what training would stumble over.

    Args:
        datalist: The cases.
        settings: Settings of the training; ``channels`` and ``labels`` say what is expected.
        report: What a pass over the cases has found, if they have been read already.

    Returns:
        What the user should know though training can go on, line by line.

    Raises:
        DataListError: If there is no case to train on, or a case lacks its image or label.
        UnreadableFileError: If a file cannot be read.
        MedvaeError: If a file does not hold what the settings expect.
    """
    cases = [case for case in datalist if case.split in READ_IN_TRAINING]
    if not datalist.split("training"):
        raise DataListError(
            f"{datalist.path} has no case under 'training'; at least one is needed. Move"
            f" some there."
        )
    # Two-stage models learn shapes from masks alone; their configuration says so.
    needs_images = "allow_missing_images=True" not in json.dumps(settings.get("train", {}))
    for case in cases:
        lacking = "label" if case.label is None else "image" if not case.image else None
        if lacking == "label" or (lacking and needs_images):
            raise DataListError(
                f"{datalist.path}: case {case.name} of {case.split} has no {lacking}; training "
                f"needs it. Add the file, or move the case out of {' and '.join(READ_IN_TRAINING)}."
            )
    told = settings.get("network_def", {}).get("attributes", ())
    classes = [name.removeprefix(CLASS) for name in told if str(name).startswith(CLASS)]
    for case in cases if classes else ():
        where = f"{datalist.path}: case {case.name} of {case.split}"
        require_class(case.extra.get("class"), classes, where)
    if not any(case.image for case in datalist.split("training")):
        raise DataListError(
            f"{datalist.path} has masks alone under 'training'; at least one case with an image is "
            f"needed. Add one."
        )
    if report is None:
        report = check(datalist, values=list(settings["labels"].values()))
    require_clean(report)
    read = [each for each in report.cases if each.split in READ_IN_TRAINING and each.channels]
    for found in read:
        _require_channels(found, settings["channels"])
    _require_each(datalist, [each for each in read if each.split == "training"], settings)
    others = [f for f in (*report.unreadable, *report.findings) if not _is_fatal(report, f)]
    return [f"note: {finding.text}" for finding in others]


def require_clean(
    report: IntegrityReport,
    splits: Collection[str] = READ_IN_TRAINING,
    kinds: Collection[str] = FATAL,
) -> None:
    """Refuses cases that cannot be read, or cannot be right.

    Args:
        report: What a pass over the cases has found.
        splits: Splits that are looked at.
        kinds: Kinds of findings that are refused.

    Raises:
        UnreadableFileError: If a file cannot be read.
        DataListError: If there is a finding that training cannot live with.
    """
    unreadable = [f for f in report.unreadable if _is_fatal(report, f, splits, kinds)]
    findings = [f for f in report.findings if _is_fatal(report, f, splits, kinds)]
    for faults, kind in ((unreadable, UnreadableFileError), (findings, DataListError)):
        if faults:
            shown = " ".join(fault.text for fault in faults[:SHOWN])
            raise kind(
                f"{len(faults)} things are wrong with the cases: {shown} "
                f"`medvae3d data check` lists all of them."
                if len(faults) > 1
                else shown
            )


def _is_fatal(
    report: IntegrityReport,
    finding: Finding,
    splits: Collection[str] = READ_IN_TRAINING,
    kinds: Collection[str] = FATAL,
) -> bool:
    found = {case.split for case in report.cases if case.case == finding.case}
    is_read = not found.isdisjoint(splits)
    return is_read and (finding in report.unreadable or finding.kind in kinds)


def _require_each(
    datalist: DataList, cases: Sequence[CaseReport], settings: Mapping[str, Any]
) -> None:
    """Refuses channels that no training case has, and cases that have none of those that are read.

    Raises:
        DataListError: If there is one.
    """
    channels = settings["channels"]
    for number, channel in enumerate(channels):
        if cases and all(case.channels[number] is None for case in cases):
            raise DataListError(
                f"{datalist.path}: channel {number} ({channel['name']}) is null in every training "
                f"case; at least one has to have it. Add one, or train on the other channels."
            )
    for case in cases:
        if channels and all(item is None for item in case.channels[: len(channels)]):
            raise DataListError(
                f"{datalist.path}: case {case.case} has none of the {len(channels)} channels that "
                f"the model reads. Take it out, or add one of them."
            )


def _require_channels(case: CaseReport, channels: list[Mapping[str, Any]]) -> None:
    """Refuses too few channels, and ranges that cannot be of the expected unit."""
    if len(case.channels) < len(channels):
        names = ", ".join(str(channel["name"]) for channel in channels)
        raise IntensityError(
            f"case {case.case} has {len(case.channels)} channels; the model reads {len(channels)}: "
            f"{names}. List one file a channel, in this order."
        )
    for item, channel in zip(case.channels, channels, strict=False):
        if item is None:
            continue
        scheme = intensity_from_config(channel["intensity"])
        if scheme.kind == "percentile":
            continue  # it is judged by all voxels, not by the range
        ends = torch.tensor([item["low"], item["high"]])
        scheme.check(ends, f"{item['file']} of case {case.case} ({channel['name']})")
