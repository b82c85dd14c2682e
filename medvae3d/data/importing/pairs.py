"""Folders of volumes with their masks: NIfTI, NRRD or MetaImage.

What is a mask is told by its folder (``masks/``, ``labels/``) or by the last word of its name
(``case1_mask.nrrd``, ``case1/seg.mha``). What is left of folder and name is the case; the word that
was taken off an image is its channel.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from medvae3d.data.case_names import FILE_WORDS
from medvae3d.data.importing.common import (
    FoundCase,
    Layout,
    is_volume,
    require_all_labelled,
    require_there,
    require_unique,
    safe,
    some,
    stem_of,
)
from medvae3d.errors import DataListError

MASK_WORDS = re.compile(r"(seg|mask|label|labels|lesion|lesions|gtv|roi|gt)", re.IGNORECASE)
MASK_FOLDERS = {"masks", "mask", "labels", "label", "segmentations", "labelstr"}
IMAGE_FOLDERS = {"images", "image", "imagestr", "scans"}
PLAIN = "image"


def find_pairs(source: Path, channels: Sequence[str] | None = None) -> Layout:
    """Finds images and masks that belong together.

    Args:
        source: Folder, searched with all folders below.
        channels: Channels to take, in order; all that there are, by name, if not given.

    Raises:
        DataListError: If files cannot be put together to cases.
    """
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    masks: dict[str, Path] = {}
    for path in sorted(p for p in source.rglob("*") if p.is_file() and is_volume(p)):
        case, word, is_mask = _parts(path.relative_to(source), channels or ())
        known = masks if is_mask else images[case]
        key = case if is_mask else word
        if key in known:
            raise DataListError(
                f"{source}: {known[key]} and {path} are both the {'mask' if is_mask else word} of "
                f"case {case}; allowed is one. Join the masks into one label map, or move one away."
            )
        known[key] = path
    if alone := sorted(set(masks) - {case for case, files in images.items() if files}):
        raise DataListError(
            f"{source}: {some(masks[case] for case in alone)} have no image of the same name; "
            f"name them alike, such as case1_image.nrrd and case1_mask.nrrd, or case1.nrrd in "
            f"images/ and in masks/."
        )
    usual = tuple(sorted({word for files in images.values() for word in files}))
    wanted = usual if channels is None else tuple(channels)
    require_there(usual, wanted, source)
    cases = []
    for case, files in sorted(images.items()):
        if lacking := [word for word in wanted if word not in files]:
            raise DataListError(
                f"{source}: case {case} has {some(files)} and lacks {some(lacking)}; all cases "
                f"need the same channels. Add the files, or name with --channels what to take."
            )
        chosen = tuple((files[word],) for word in wanted)
        cases.append(FoundCase(safe(case), _subject(case), chosen, masks.get(case)))
    require_all_labelled(cases, source)
    require_unique(cases, source)
    return Layout("pairs", source, tuple(cases), wanted)


def _parts(path: Path, channels: Sequence[str]) -> tuple[str, str, bool]:
    """Case, channel, and whether it is a mask."""
    folders = [part for part in path.parts[:-1]]
    in_masks = any(part.lower() in MASK_FOLDERS for part in folders)
    kept = [part for part in folders if part.lower() not in MASK_FOLDERS | IMAGE_FOLDERS]
    stem = stem_of(path)
    head, _, tail = stem.rpartition("_")
    is_word = tail in channels or FILE_WORDS.fullmatch(tail) is not None
    is_mask = in_masks or MASK_WORDS.fullmatch(tail) is not None
    if is_word and (head or kept):
        name = [*kept, head] if head else kept
    else:
        name, tail = [*kept, stem], PLAIN
    # case1/case1_t1 is case1, not case1_case1.
    if len(name) > 1 and name[-1] == name[-2]:
        name.pop()
    return "_".join(name), tail, is_mask


def _subject(case: str) -> str:
    bids = re.match(r"sub-[^_]+", case)
    return bids.group() if bids else case
