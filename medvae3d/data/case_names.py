"""What the names of files say: the case, its patient, and what is in a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

VOLUME_SUFFIXES = (".nii.gz", ".nii")
# What may follow the last underscore of a file name without being part of the case.
FILE_WORDS = re.compile(
    r"(flair|t1|t2|mrt1|mrt2|t1c|t1ce|t1gd|t1n|t1post|t1w|t2f|t2w|pd|pdw|dwi|adc|trace|swi|asl"
    r"|mr|mri|ct|pet|suv|img|image|brain|head|seg|mask|label|labels|lesion|lesions|gtv|roi|gt)",
    re.IGNORECASE,
)


def subject_of(files: Sequence[Path]) -> str:
    """Tells the patient from file names.

    ``sub-12_ses-01_T1w`` is ``sub-12`` (BIDS); ``STS_001_pet`` is ``STS_001``;
    ``hippocampus_003`` stays; ``case/t1.nii.gz`` is ``case``.
    """
    name = name_of(files)
    bids = re.match(r"sub-[^_]+", name)
    return bids.group() if bids else name


def file_word(path: Path) -> str:
    """The word of a file name that says what is in it, such as ``pet`` of ``STS_001_pet``."""
    tail = stem_of(path).rpartition("_")[2]
    return tail if FILE_WORDS.fullmatch(tail) else ""


def name_of(files: Sequence[Path]) -> str:
    """Name of a case: that of its first file, without the word for modality or mask."""
    stems = [stem_of(file) for file in files]
    name = stems[0]
    head, _, tail = name.rpartition("_")
    if not head and FILE_WORDS.fullmatch(name) and files[0].parent.name:
        return files[0].parent.name
    # nnU-Net numbers its channels; a label of that case has the bare name.
    numbered = re.fullmatch(r"\d{4}", tail) and head in stems[1:]
    return head if head and (FILE_WORDS.fullmatch(tail) or numbered) else name


def stem_of(path: Path) -> str:
    """The name of a volume without its suffixes."""
    for suffix in VOLUME_SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem
