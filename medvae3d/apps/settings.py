"""Settings of a training run: a bundle's own ``train.json``, a recipe over it, and ``KEY=VALUE``.

MONAI takes any top-level name on the command line, also a misspelt one, and then trains with the
old value. Here a name has to be there already.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from medvae3d.errors import BundleError, SettingError
from medvae3d.files import load_json

# Names that have an option of their own, or follow from --out.
RESERVED = {
    "bundle_root": "--out",
    "ckpt_dir": "--out",
    "output_dir": "--out",
    "datalist": "--datalist",
    "dataset_dir": "--datalist",
    "seed": "--seed",
    "resume": "--resume",
    "device": "--device",
}
NOT_RECIPES = {"metadata", "train", "inference", "evaluate", "multi_gpu_train"}
COUNTS = ("max_epochs", "epoch_length", "batch_size", "accumulation_steps", "val_interval")
WORDS = {"True": True, "False": False, "None": None}
# First letters by which a configuration knows expressions, references and macros.
EXPRESSIONS = ("$", "@", "%")


def recipes(root: Path) -> list[str]:
    """Names of the recipes that a bundle has besides its full training."""
    found = (path.stem for path in sorted((root / "configs").glob("*.json")))
    return [name for name in found if name not in NOT_RECIPES]


def read_settings(root: Path, recipe: str | None = None) -> dict[str, Any]:
    """Reads a bundle's ``train.json``, with a recipe over it.

    Args:
        root: Folder of the bundle.
        recipe: Name of a file in ``configs`` whose entries replace those of ``train.json``.

    Raises:
        BundleError: If the bundle cannot be trained.
        SettingError: If it does not have the recipe.
    """
    files = [root / "configs" / "train.json"]
    if recipe is not None:
        if recipe not in recipes(root):
            raise SettingError(
                f"{root.name} has no recipe {recipe!r}; it has {', '.join(recipes(root)) or 'none'}"
                f". Name one of these, or leave out --recipe for the full training."
            )
        files.append(root / "configs" / f"{recipe}.json")
    try:
        for path in files:
            require_object(load_json(path))
        return dict(ConfigParser.load_config_files([str(path) for path in files]))
    except FileNotFoundError:
        raise BundleError(
            f"{files[0]} does not exist; a bundle that can be trained has it. Restore it, or take "
            f"another bundle."
        ) from None
    except (OSError, ValueError) as error:
        names = " or ".join(map(str, files))
        raise BundleError(f"{names} is not JSON: {error}. Restore the file.") from error


def require_trainable_settings(settings: Mapping[str, Any], path: Path) -> None:
    """Checks that settings are those of a training.

    Args:
        settings: What `read_settings` gave.
        path: Where they were read.

    Raises:
        BundleError: If what every training has is not there.
    """
    part = settings.get("train")
    lacking = [key for key in ("channels", "labels", "network_def") if not settings.get(key)]
    lacking += [
        key for key in ("max_epochs", "epoch_length") if not isinstance(settings.get(key), int)
    ]
    if not isinstance(part, Mapping) or not isinstance(part.get("handlers"), list):
        lacking.append("train#handlers")
    if lacking:
        raise BundleError(
            f"{path} is not the configuration of a training: it has no {', '.join(lacking)}. "
            f"Restore the file, or take another bundle."
        )


def require_object(content: Any) -> None:
    """Checks that JSON is an object.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not names with values")


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the settings with some of them replaced, by nested names."""
    parser = ConfigParser(json.loads(json.dumps(settings)))
    parser.update(pairs=dict(changes))
    return dict(parser.get())


def parse_changes(texts: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Reads ``KEY=VALUE`` texts and checks them against the settings that there are.

    Args:
        texts: What the user wrote; ``KEY`` may be nested, as ``network_def#dropout``, and
            ``VALUE`` is JSON, or else text.
        settings: The settings that are changed.

    Returns:
        Nested names, parted by ``#``, with their values.

    Raises:
        SettingError: If a name is unknown, or a value is of another kind than the present one.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        key, has_value, value = text.partition("=")
        key = key.strip().replace("::", "#")
        if not has_value or not key:
            raise SettingError(
                f"{text!r} is no setting; allowed is KEY=VALUE without spaces around the sign. "
                f"Write it like max_epochs=10 or network_def#dropout=0.1."
            )
        if key in RESERVED:
            raise SettingError(
                f"{key} cannot be set as KEY=VALUE, since it belongs to {RESERVED[key]}. Use that."
            )
        present = _present(key, settings)
        changes[key] = _value(key, value, present)
    return changes


def _present(key: str, settings: Mapping[str, Any]) -> Any:
    """The present value under a nested name."""
    here: Any = settings
    for part in key.split("#"):
        if isinstance(here, Mapping) and part in here:
            here = here[part]
        elif isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        else:
            near = _nearest(key, settings)
            advice = f"Did you mean {near}?" if near else "`configs/train.json` lists them all."
            raise SettingError(
                f"there is no setting {key!r}; allowed are the names in the bundle's train.json, "
                f"nested ones with # between them. {advice}"
            )
    return here


def _nearest(key: str, settings: Mapping[str, Any]) -> str:
    """The setting whose name is most like the one asked for, anywhere in the tree."""
    names = list(_names(settings))
    by_last: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (name.count("#"), name)):
        by_last.setdefault(name.rpartition("#")[2], name)
    last = key.rpartition("#")[2]
    if last in by_last:
        return by_last[last]
    whole = difflib.get_close_matches(key, names, n=1, cutoff=0.7)
    parts = difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.6)
    return whole[0] if whole else by_last[parts[0]] if parts else ""


def _names(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{key}#")


def _value(key: str, text: str, present: Any) -> Any:
    """A value as JSON, or as text; of the kind that the present one is."""
    value: Any = text
    if text in WORDS:
        value = WORDS[text]
    else:
        with suppress(ValueError):
            value = json.loads(text)
    is_free = isinstance(value, str) and value.startswith(EXPRESSIONS)
    if present is None or is_free or (isinstance(present, str) and present[:1] in EXPRESSIONS):
        return value
    if _kind(value) != _kind(present):
        raise SettingError(
            f"{key} is set to {text!r}, which is {_kind(value)}; allowed is {_kind(present)}, as "
            f"the present {json.dumps(present)[:60]}. Correct the value."
        )
    _require_kinds(key, text, value, present)
    if key in COUNTS and not (isinstance(value, int) and value >= 1):
        raise SettingError(
            f"{key} is set to {text!r}; allowed are whole numbers from 1 on. Correct the value."
        )
    return value


def _require_kinds(key: str, text: str, value: Any, present: Any) -> None:
    """Refuses a list of another kind than the present one, where that is all of one kind."""
    if not isinstance(value, list) or not isinstance(present, list):
        return
    kinds = {_kind(each) for each in present}
    others = [each for each in value if _kind(each) not in kinds]
    is_free = any(isinstance(each, str) and each.startswith(EXPRESSIONS) for each in others)
    if len(kinds) == 1 and others and not is_free:
        raise SettingError(
            f"{key} is set to {text!r}, where {json.dumps(others[0])[:40]} is {_kind(others[0])}; "
            f"allowed in this list is {kinds.pop()}, as in the present {json.dumps(present)[:60]}. "
            f"Correct the value."
        )


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", str: "text", list: "a list", dict: "a set of names"}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number"
    return kinds.get(type(value), "nothing")
