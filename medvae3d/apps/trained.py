"""The folder of a training run, which is a bundle again: configurations, weights, card, terms.

Everything in it that tells of data is written from the data list. What the shipped bundle says of
its own data and weights is left behind, as it would be wrong here.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvae3d import __version__
from medvae3d.apps.bundle_files import read_json
from medvae3d.data.datalists import SPLITS, DataList
from medvae3d.data.nifti import write_bytes
from medvae3d.errors import OutputError, SettingError
from medvae3d.files import json_bytes, load_json

RUN_FILE = "run.json"
CASES_FILE = "cases.json"
"""What was in each file of the cases when the run began."""
LACKING = "training_cases_lacking_a_channel"
"""Entry of that file with their number, where there were any."""
# Stands in a folder until all of its bundle but the weights is written.
BEGINNING = ".beginning"
# What every configuration of a bundle says alike: the network, and what goes into it.
SHARED = (
    "channels", "labels", "spacing", "spatial_shape", "attributes", "classes", "network_def",
)  # fmt: skip
VERSION = "0.1.0"
# What metadata says of one training and not of a model.
OF_ONE_TRAINING = (
    "changelog", "eval_metrics", "data_source", "data_licence", "data_license", "licence",
    "license", "authors", "copyright", "references", "cite",
)  # fmt: skip


DOI = re.compile(r"10\.\d{4,}/\S+")


def read_run(folder: Path) -> dict[str, Any] | None:
    """What is known of the run in a folder; ``None`` if it is absent or empty, or only begun.

    Raises:
        OutputError: If the folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if (folder / BEGINNING).exists():  # killed before there was anything to go on with
        return None
    path = folder / RUN_FILE
    try:
        content = load_json(path)
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not (folder / "configs" / "train.json").is_file():
        raise OutputError(
            f"{folder} is neither empty nor the folder of a training run (with {RUN_FILE} and "
            f"configs/). Choose a new or empty folder for --out."
        )
    return content


def read_contents(folder: Path) -> dict[str, Any]:
    """What was in each file of the cases when the run began; nothing if it was not written down.

    Raises:
        OutputError: If what was written down cannot be read.
    """
    path = folder / CASES_FILE
    try:
        content = load_json(path)
    except FileNotFoundError:  # a run of an earlier version
        return {}
    except (OSError, ValueError) as error:
        content = error
    if not isinstance(content, dict):
        raise OutputError(
            f"{path} cannot be read as what a run knows of its cases: {content}. Restore it, or "
            f"delete it to go on without comparing the cases with those that the run began with."
        )
    return content


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Writes what is known of a run."""
    write_bytes(folder / RUN_FILE, pretty(run))


def require_same_run(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses to go on with a run under other settings than it was begun with.

    Args:
        folder: Its folder.
        found: What the folder says.
        wanted: What was asked for now; what is ``None`` was not asked for.

    Raises:
        SettingError: If anything differs.
    """
    if wanted.get("cases_sha256") not in (None, found.get("cases_sha256")):
        raise SettingError(
            f"{folder} holds a run on other cases: those of its list {found.get('datalist')} were "
            f"{found.get('cases')}, and the files were not these. Resume with the list that it "
            f"was begun with, or train anew in another folder."
        )
    for key, value in wanted.items():
        if value is not None and value != found.get(key):
            raise SettingError(
                f"{folder} holds a run with {key} {json.dumps(found.get(key))}; now asked for is "
                f"{json.dumps(value)}. Leave it as it was to resume, or train anew in another "
                f"folder."
            )


def write_bundle(
    folder: Path,
    source: Path,
    settings: Mapping[str, Any],
    original: Mapping[str, Any],
    datalist: DataList,
    run: Mapping[str, Any],
    contents: Mapping[str, Any],
    *,
    name: str,
) -> None:
    """Writes all of a bundle but its weights.

    A mark stands in the folder until it is whole, so that one of a killed process is begun anew.

    Args:
        folder: Where to; empty, or with what was begun.
        source: Bundle that is trained.
        settings: Settings of the training, with all changes.
        original: The same without changes.
        datalist: The cases.
        run: What is known of the run.
        contents: What is in the files of the cases, see `medvae3d.data.stamps`.
        name: What the bundle is called in the end.
    """
    mark = folder / BEGINNING
    for path in folder.iterdir() if mark.exists() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != mark:
            path.unlink()
    mark.touch()
    for part in ("configs", "docs", "models"):
        (folder / part).mkdir()
    moved = [key for key in SHARED if key in settings and settings[key] != original.get(key)]
    for path in sorted((source / "configs").iterdir()):
        target = folder / "configs" / path.name
        if path.name == "train.json":
            target.write_bytes(pretty(settings))
        elif path.name == "metadata.json":
            target.write_bytes(pretty(_metadata(read_json(path), source, settings, datalist)))
        elif path.suffix == ".json" and moved:
            content = read_json(path)
            target.write_bytes(
                pretty(content | {key: settings[key] for key in moved if key in content})
            )
        elif path.is_file():
            shutil.copyfile(path, target)
    (folder / "LICENSE").write_text(_code_licence(source / "LICENSE"), encoding="utf-8")
    terms = _terms(datalist)
    (folder / "docs" / "data_license.txt").write_text(f"1. {terms}\n", encoding="utf-8")
    card = _card(name, source.name, datalist, terms, run)
    (folder / "docs" / "README.md").write_text(card, encoding="utf-8")
    write_bytes(folder / CASES_FILE, json_bytes(contents, 0))
    write_run(folder, run)
    mark.unlink()


def _metadata(
    metadata: Mapping[str, Any], source: Path, settings: Mapping[str, Any], datalist: DataList
) -> dict[str, Any]:
    """The metadata of the shipped bundle, without what it says of its own training."""
    kept = {key: value for key, value in metadata.items() if key not in OF_ONE_TRAINING}
    title = metadata.get("name", source.name)
    channels = [f"{each['name']} in {each.get('unit', '')}" for each in settings["channels"]]
    labels = ", ".join(f"{value} {name}" for name, value in settings["labels"].items())
    path = source / "docs" / "data_license.txt"
    terms = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return {
        **kept,
        "version": VERSION,
        "changelog": {VERSION: f"trained with medvae3d {__version__}"},
        "name": f"{title}, trained on {_name(datalist)}",
        "authors": "whoever trained it",
        "copyright": "whoever trained it",
        "data_source": _name(datalist),
        "data_licence": [_terms(datalist)],
        "licence": "to be stated by whoever trained it; the terms of the data apply",
        "image_classes": ", ".join(channels),
        "label_classes": labels,
        "pred_classes": labels,
        "eval_metrics": {},
        "references": [
            # Those of the method stay, those of the data that it was shipped with do not.
            text
            for text in metadata.get("references", [])
            if not any(doi.rstrip(".,;") in terms for doi in DOI.findall(text))
        ],
        "network_data_format": _data_format(metadata.get("network_data_format", {}), settings),
    }


def _data_format(stated: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into the network and comes out, with the channels, labels and sizes in use."""
    channels, labels = settings["channels"], settings["labels"]
    images = {str(number): each["name"] for number, each in enumerate(channels)}
    masks = {str(value): name for name, value in labels.items()}
    changed: dict[str, Any] = json.loads(json.dumps(stated))
    for part, tensors in changed.items():
        for name, tensor in tensors.items():
            is_mask = name == "pred"
            tensor["spatial_shape"] = list(settings["spatial_shape"])
            tensor["channel_def"] = masks if is_mask else images
            if not is_mask:
                tensor["num_channels"] = len(channels)
            elif part == "outputs":  # the fields of the mask, then the image
                tensor["num_channels"] = len(masks) - 1 + len(channels)
            else:
                tensor["value_range"] = [0, max(labels.values())]
    return changed


def _name(datalist: DataList) -> str:
    """What the cases are called."""
    named = datalist.info.get("name")
    return str(named or (datalist.path.name if datalist.path else "a data list"))


def _terms(datalist: DataList) -> str:
    """Terms of the data in a line, as the list states them."""
    name = _name(datalist)
    licence = datalist.info.get("licence") or datalist.info.get("license")
    if isinstance(licence, Mapping):
        parts = [str(licence[key]) for key in ("name", "url", "note") if licence.get(key)]
        return f"{name}: {', '.join(parts)}"
    if licence:
        return f"{name}: {licence}"
    return (
        f"{name}: the data list states no licence. Say here on what terms the data may be used "
        f"before weights or samples are passed on."
    )


def _code_licence(path: Path) -> str:
    """The licence text of a bundle, without what stands above it on the weights it came with."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not text:
        return (
            "Terms of these weights: not stated. See docs/data_license.txt for those of the data.\n"
        )
    begin = text.find("Apache License")
    line = text.rfind("\n", 0, begin) + 1 if begin >= 0 else 0
    return text[line:]


def _card(name: str, source: str, datalist: DataList, terms: str, run: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{len(datalist.split(split))} {split}" for split in SPLITS)
    settings = run.get("settings") or {}
    changes = "".join(f"\n- `{key}` = `{json.dumps(value)}`" for key, value in settings.items())
    recipe = f", recipe `{run['recipe']}`" if run.get("recipe") else ""
    return f"""# {name}

Trained with `medvae3d train {source}` (medvae3d {__version__}, seed {run["seed"]}{recipe}).
Sections in brackets are to be filled in by whoever trained it.

## Data

{terms}

Cases: {counts}.

## Settings

Those of `{source}`{", with these changes:" if changes else "."}{changes}

All of them stand in `configs/train.json`; versions, device and data list in `{RUN_FILE}`.

## Intended use

[Research on synthetic training data. Not a medical device.]

## Limits

[What the cases do not show; which scanners, which patients; how the samples were looked at.]

## Figures

Learning curves: `eval/history.csv` and `eval/validation.jsonl`. Figures on held-out cases:

```sh
medvae3d figures {name} --datalist LIST
```

## Use

```sh
medvae3d generate {name} --count 20 --seed 1 --out synthetic
```
"""


def pretty(content: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """JSON as the files of a bundle are written."""
    return json.dumps(content, indent=4).encode() + b"\n"
