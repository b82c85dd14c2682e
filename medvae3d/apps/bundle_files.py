"""The files of a bundle: configuration, weights, metadata, licences; read strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from medvae3d.apps.trust import require_trusted
from medvae3d.errors import BundleError, MedvaeError, SettingError
from medvae3d.files import load_json
from medvae3d.flows.pairs import CasePairs
from medvae3d.training.checkpoints import load_state


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads a flat state dictionary that fits exactly.

    Raises:
        BundleError: If the file is missing or damaged, or is of another network.
    """
    state = load_state(path)
    for name, part in network.named_modules():
        if isinstance(part, CasePairs):
            part.take_sizes(state, f"{name}." if name else "")
    known = network.state_dict()
    lacking = [key for key in known if key not in state]
    foreign = [key for key in state if key not in known]
    reshaped = [
        f"{key} {tuple(getattr(state[key], 'shape', ()))} instead of {tuple(known[key].shape)}"
        for key in known
        if key in state and getattr(state[key], "shape", None) != known[key].shape
    ]
    faults = {"lacks": lacking, "has no place for": foreign, "has other sizes": reshaped}
    if any(faults.values()):
        said = "; ".join(
            f"it {verb} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' * (len(keys) > 3)}"
            for verb, keys in faults.items()
            if keys
        )
        raise BundleError(
            f"{path} holds the weights of another network than network_def: {said}. Restore the "
            f"weights of this bundle, or the settings that they were trained with."
        )
    network.load_state_dict(state, strict=True)


def usable_device(device: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        SettingError: If it is not there.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        reason = "there is none of that name" if "at start of device string" in reason else reason
        raise SettingError(
            f"device {str(device)!r} cannot be used ({reason}); allowed are cpu, and cuda where "
            f"there is a GPU. Name one of them with --device."
        ) from error
    return place


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        BundleError: If there is none.
    """
    try:
        found = load_json(path)
    except FileNotFoundError as error:
        raise BundleError(
            f"{path} does not exist; a bundle needs it. Restore it, or check the path."
        ) from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}. Restore the file.") from error
    if not isinstance(found, dict):
        raise BundleError(f"{path} holds a {type(found).__name__}; expected names with values.")
    return found


def parser_of(config: Path, root: Path) -> ConfigParser:
    """A configuration that knows which folder it is of, and executes only what is agreed to.

    Raises:
        BundleError: If it would execute what is neither known nor trusted.
    """
    require_trusted(root)
    parser = ConfigParser(read_json(config))
    parser["bundle_root"] = str(root)
    return parser


def content(parser: ConfigParser, ids: Sequence[str], config: Path) -> dict[str, Any]:
    """Resolved values of those identifiers that there are.

    Raises:
        BundleError: If one cannot be resolved.
    """
    found = {}
    for key in ids:
        if parser.get(key) is None:
            continue
        try:
            found[key] = parser.get_parsed_content(key)
        except MedvaeError:
            raise
        except Exception as error:  # a configuration may call anything
            cause = error.__cause__ or error
            raise BundleError(
                f"{config}: `{key}` cannot be made ({type(cause).__name__}: {cause}). Correct it, "
                f"or install the version of medvae3d that the bundle was made with."
            ) from error
    return found


def licence_of(root: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Terms of the weights and of the data they were trained on, as the bundle states them."""
    weights = metadata.get("licence") or metadata.get("license")
    if not weights:
        lines = _lines(root / "LICENSE")
        weights = " ".join(lines[:2]) if lines else "not stated"
    data = texts(metadata.get("data_licence") or metadata.get("data_license"))
    if not data:
        lines = _lines(root / "docs" / "data_license.txt")
        data = tuple(line for line in lines if re.match(r"\d+[.)]", line)) or tuple(lines[:3])
    return {"weights": str(weights), "data": list(data)}


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def texts(value: Any) -> tuple[str, ...]:
    """One text or a list of them, as a tuple."""
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(each) for each in value)
