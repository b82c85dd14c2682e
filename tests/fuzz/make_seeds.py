"""Writes whole files of each kind, for fuzzing to begin with: ``make_seeds.py FOLDER``."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# In the order of the targets in `fuzz_readers.py`.
KINDS = ("list", "opened", "manifest", "record", "bundle", "options", "yaml", "dataset", "tar",
         "nrrd", "mha", "slice", "cell", "curve", "validation")  # fmt: skip
sys.path.append(str(REPOSITORY / "tests"))


def contents() -> dict[str, list[bytes]]:
    """Whole files by kind."""
    from hostile import make_sources

    case = {"image": ["a_t1.nii.gz", None], "label": "b.nii.gz", "subject": "s", "class": "x"}
    listed = {"name": "n", "labels": {"0": "background", "1": "lesion"}, "training": [case],
              "validation": ["c.nii.gz"], "channels": ["T1", "PET"]}  # fmt: skip
    raw = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "lesion": [1, 2]},
           "numTraining": 1, "file_ending": ".nii.gz"}  # fmt: skip
    decathlon = {"modality": {"0": "MRI"}, "training": [{"image": "a.nii", "label": "b.nii"}],
                 "test": ["c.nii"], "labels": {"0": "background"}}  # fmt: skip
    record = {"case": "fuzz", "bundle": "sts_petct_hvae 1.0.0", "cite": ["A. Author, 2020"],
              "rejected": {"border": 2}, "attempts": 3, "index": 0}  # fmt: skip
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as made:
        for name in ("a.image.nii", "a.label.nii", "a.json"):
            info = tarfile.TarInfo(name)
            info.size = 4
            made.addfile(info, io.BytesIO(b"{}  "))
    cell = {"cell": {}, "means": {"dice": 0.5}, "scores": {"s": {"dice": 0.5}}, "p": [0.1],
            "seconds": 1.5}  # fmt: skip
    manifests = (REPOSITORY / "data_manifests").glob("*.json")
    bundles = (REPOSITORY / "bundles").glob("*/configs/metadata.json")
    return {
        "list": [json.dumps(listed).encode()],
        "opened": [json.dumps(each).encode() for each in (listed, raw)],
        "manifest": [path.read_bytes() for path in manifests if path.stat().st_size < 4000],
        "record": [json.dumps(record).encode()],
        "bundle": [path.read_bytes()[:4000] for path in bundles],
        "options": [b'{"count": 3}', b'{"command": "x", "options": {"count": "3"}}'],
        "yaml": [b"count: 3\n", b"count:\n - 3\n"],
        "dataset": [json.dumps(each).encode() for each in (raw, decathlon)],
        "tar": [archive.getvalue()],
        "nrrd": [make_sources.nrrd(), make_sources.nrrd(b"", data_file="fuzz.nrrd")],
        "mha": [make_sources.meta(), make_sources.meta(b"", ElementDataFile="fuzz.mha")],
        "slice": [make_sources.plane(0)],
        "cell": [json.dumps(cell).encode()],
        "curve": [b"step,model/loss\n50,1.5\n100,\n"],
        "validation": [b'{"epoch": 1.0, "score": 0.5}\n'],
    }


def make(folder: Path) -> None:
    """Writes them, each after the byte that chooses its target and the one for raw content."""
    folder.mkdir(parents=True, exist_ok=True)
    found = contents()
    for number, kind in enumerate(KINDS):
        for index, content in enumerate(found[kind]):
            (folder / f"{kind}_{index}").write_bytes(bytes([number, 0]) + content)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
