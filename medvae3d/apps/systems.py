"""Any named system on any data list: the bundle that `medvae3d.apps.training` then trains.

A system says how it is trained, the cases say what it is trained on. Both are laid over the files
in ``medvae3d/models/systems`` and give a bundle without weights.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata as installed
from pathlib import Path
from typing import Any

from medvae3d import __version__
from medvae3d.apps.bundle import find_bundle
from medvae3d.apps.bundle_files import read_json
from medvae3d.apps.settings import changed, parse_changes, read_settings
from medvae3d.apps.trained import SHARED, pretty
from medvae3d.data.datalists import DataList
from medvae3d.data.forms import DataForm, read_form
from medvae3d.data.integrity import IntegrityReport
from medvae3d.data.intensity import intensity_from_config
from medvae3d.errors import SettingError
from medvae3d.models.registry import SYSTEMS
from medvae3d.models.systems.files import BUNDLE, laid_over, read_base, read_system
from medvae3d.networks.autoencoders import all_strides, total_stride

# Settings that only some systems have a use for.
OPTIONAL = ("discriminator", "discriminator_optimizer", "optimizer")
# Share of channels that are hidden from the encoder where training cases lack some: each is then
# hidden often enough to be learned, and most cases are still seen whole.
CHANNEL_DROPOUT = 0.25
# Models without an encoder of images, or with one that judges or is told what surrounds a region.
WITHOUT_DROPOUT = ("pavae", "dcgan", "vae_noise_gan", "cvae_fill")
SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
# What a bundle needs besides MONAI, PyTorch and NumPy.
NEEDED = ("nibabel", "pytorch-ignite", "fire", "scikit-learn", "scipy", "torchio")


def system_settings(name: str) -> dict[str, Any]:
    """The training configuration of a system, before it is told of any data."""
    changes = {
        key: value for key, value in read_system(name).items() if key.split("#")[0] != "synthesis"
    }
    return _without_unused(laid_over(read_base(), changes))


def write_system_bundle(
    folder: Path,
    name: str,
    datalist: DataList,
    report: IntegrityReport,
    *,
    like: str | Path | None = None,
    changes: Sequence[str] = (),
) -> DataForm:
    """Writes a bundle without weights, for a system and the form of a data set.

    Args:
        folder: Where to; must not exist.
        name: Name of the system.
        datalist: The cases.
        report: What a pass over them has found.
        like: Bundle whose form of the data is taken in place of that of the cases.
        changes: ``KEY=VALUE`` texts that will be laid over; they may change the strides.

    Raises:
        MedvaeError: If the cases have no form that the system can be trained on.
    """
    settings = system_settings(name)
    sized = changed(settings, parse_changes(changes, settings))
    form: DataForm
    if like is None:
        form = read_form(datalist, report, multiples(sized["network_def"]))
    else:
        form = form_of_bundle(find_bundle(like))
    settings |= form.settings
    lacking = sum(bool(case.missing) for case in datalist.split("training"))
    if lacking:
        form = replace(form, notes=(*form.notes, _told_of_missing(settings, lacking)))
    inference = _inference(name, settings, form)
    (folder / "configs").mkdir(parents=True)
    for path in sorted(BUNDLE.iterdir()):
        shutil.copyfile(path, folder / "configs" / path.name)
    written = {
        "train": settings,
        "inference": inference,
        "metadata": _metadata(name, settings),
    }
    evaluate = read_json(BUNDLE / "evaluate.json")
    # Evaluation looks at the weights that were loaded, not at a slow copy of them.
    text = json.dumps(settings["models"]).replace("@ema.module", "@network")
    written["evaluate"] = evaluate | {"models": json.loads(text)}
    for file, content in written.items():
        (folder / "configs" / f"{file}.json").write_bytes(pretty(content))
    return form


def _told_of_missing(settings: dict[str, Any], lacking: int) -> str:
    """Prepares a system for cases that lack a channel, and says how."""
    note = f"{lacking} training cases lack a channel, which counts nowhere in their losses"
    network = settings["network_def"]
    plays = json.dumps(settings["train"]["players"])
    if network["_target_"].rsplit(".", 1)[-1] in WITHOUT_DROPOUT or "Introspective" in plays:
        return note
    network["channel_dropout"] = CHANNEL_DROPOUT
    return (
        f"{note}; {100 * CHANNEL_DROPOUT:.0f} % of the channels of all cases are hidden from the "
        f"encoder, so that it learns to make them (network_def#channel_dropout)"
    )


def multiples(network: Mapping[str, Any]) -> tuple[int, int, int]:
    """What the voxels of a volume have to be multiples of along each axis.

    Args:
        network: Definition of a network, with ``channels`` and perhaps ``strides`` at any depth.
    """
    steps = [1, 1, 1]
    for part in _objects(network):
        channels = part.get("channels")
        if isinstance(channels, list):
            total = total_stride(all_strides(channels, part.get("strides")))
            steps = [math.lcm(one, other) for one, other in zip(steps, total, strict=True)]
    i, j, k = steps
    return i, j, k


def form_of_bundle(root: Path) -> DataForm:
    """The form of the data that a bundle was made for.

    Raises:
        SettingError: If its configuration does not state it.
    """
    settings = read_settings(root)
    inference = read_json(root / "configs" / "inference.json")
    lacking = [key for key in ("channels", "labels", "spacing", "spatial_shape")
               if not isinstance(settings.get(key), list | dict)]  # fmt: skip
    if lacking:
        raise SettingError(
            f"{root / 'configs' / 'train.json'} does not state {', '.join(lacking)} as plain "
            f"values; --like needs a bundle that does. Name another bundle, or leave out --like."
        )
    synthesis = inference.get("synthesis", {})
    told = synthesis.get("volume_attribute", "log_volume")
    i, j, k = map(float, settings["spacing"])
    a, b, c = map(int, settings["spatial_shape"])
    return DataForm(
        channels=tuple(settings["channels"]),
        labels=settings["labels"],
        spacing=(i, j, k),
        spatial_shape=(a, b, c),
        attributes=(told,) if isinstance(told, str) else tuple(told),
        classes=tuple(settings.get("classes", ())),
        max_components=int(synthesis.get("max_components", 1)),
        allow_border=bool(synthesis.get("allow_border", False)),
    )


def _inference(name: str, settings: Mapping[str, Any], form: DataForm) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((BUNDLE / "inference.json").read_text(encoding="utf-8"))
    content |= {key: settings[key] for key in SHARED if key in settings}
    volumes = [each for each in form.attributes if each.startswith("log_volume")]
    found = {
        "_desc_#what": f"Makes samples of: {settings['_desc_']['what']}",
        "synthesis#volume_attribute": volumes,
        "synthesis#max_components": form.max_components,
        "synthesis#allow_border": form.allow_border,
    }
    own = {key: value for key, value in read_system(name).items() if key.startswith("synthesis#")}
    return laid_over(content, found | own)


def _metadata(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle says of itself; `medvae3d.apps.trained` adds what is known of the data."""
    what = settings["_desc_"]["what"]
    image = {
        "type": "image", "format": "magnitude", "dtype": "float32", "is_patch_data": False,
        "modality": ", ".join(dict.fromkeys(_modality(each) for each in settings["channels"])),
        "num_channels": len(settings["channels"]),
    }  # fmt: skip
    mask = {**image, "format": "segmentation"}
    schemes = [intensity_from_config(channel["intensity"]) for channel in settings["channels"]]
    top = max(1.0 + 2 * float(getattr(scheme, "headroom", 0.0)) for scheme in schemes)
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "not trained yet"},
        "monai_version": installed.version("monai"),
        "pytorch_version": installed.version("torch").partition("+")[0],
        "numpy_version": installed.version("numpy"),
        "required_packages_version": {
            "medvae3d": __version__,
            **{package: installed.version(package) for package in NEEDED},
        },
        "supported_apps": {},
        "name": f"Synthesis of images with their masks ({SYSTEMS[name].title})",
        "task": "Synthesis of 3D medical images with their masks",
        "description": what,
        "authors": "whoever trained it",
        "copyright": "whoever trained it",
        "data_type": "NIfTI",
        "intended_use": "Synthetic training data for research. Not a medical device, not for "
        "diagnosis.",
        "references": [paper.citation for paper in SYSTEMS[name].papers],
        "network_data_format": {
            "inputs": {"image": {**image, "value_range": [-1.0, top]}},
            "outputs": {"pred": {**mask, "value_range": []}},
            "post_processed_outputs": {
                "pred": {**mask, "num_channels": 1, "dtype": "uint8", "value_range": []},
                "synthetic": {**image, "value_range": []},
            },
        },
    }


def _modality(channel: Mapping[str, Any]) -> str:
    """What DICOM calls it, as far as the unit tells."""
    return {"SUV": "PT", "HU": "CT"}.get(str(channel.get("unit")), "MR")


def _without_unused(settings: dict[str, Any]) -> dict[str, Any]:
    """Leaves out those of `OPTIONAL` that nothing refers to."""
    kept = dict(settings)
    for key in reversed(OPTIONAL):
        others = json.dumps({other: value for other, value in kept.items() if other != key})
        if not re.search(rf"@{key}\b", others):
            kept.pop(key, None)
    return kept


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for each in value.values():
            yield from _objects(each)
