"""What the files of the shipped bundles say, and that they say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator
from monai.utils import optional_import
from small_bundles import BUNDLES, INSERTING, JOINT, NAMES, config, read, shrunk

from medvae3d.apps.bundle import RECIPE_IDS
from medvae3d.synthesis.recipe import Recipe

SCHEMA = Path(__file__).parents[1] / "data" / "bundle_schema.json"
FILES = ("metadata", "train", "multi_gpu_train", "evaluate", "inference")
# What an inference.json says of its own bundle; all else is the same in all bundles of a kind.
FACTS = {"_desc_", *RECIPE_IDS, "network_def"}
SECTIONS = (
    "Authors",
    "Tags",
    "Model description",
    "Data",
    "Performance",
    "Commands",
    "System configuration",
    "Limitations",
    "Citation",
    "References",
)

every = pytest.mark.parametrize("name", NAMES)


def dictionaries(content: Any) -> list[dict[str, Any]]:
    """All dictionaries in a configuration."""
    if isinstance(content, dict):
        return [content, *(each for value in content.values() for each in dictionaries(value))]
    if isinstance(content, list):
        return [each for value in content for each in dictionaries(value)]
    return []


def texts(content: Any) -> list[str]:
    if isinstance(content, (dict, list)):
        parts = content.values() if isinstance(content, dict) else content
        return [text for part in parts for text in texts(part)]
    return [content] if isinstance(content, str) else []


def target(entry: dict[str, Any]) -> str:
    return str(entry["_target_"]).rsplit(".", 1)[-1]


def test_all_bundles_are_tested() -> None:
    assert sorted(path.name for path in BUNDLES.iterdir() if path.is_dir()) == sorted(NAMES)


@every
def test_files_that_tools_look_for_are_there(name: str) -> None:
    root = BUNDLES / name
    wanted = ["LICENSE", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"]
    wanted += [f"configs/{file}.json" for file in FILES]
    wanted += ["configs/small.json"] if name in JOINT else []
    assert [file for file in wanted if not (root / file).is_file()] == []
    assert not (root / "scripts").exists()
    words = ("detection", "classification", "deepedit", "deepgrow")
    assert not any(word in name for word in words), "MONAI Label would take it for another task"


@every
def test_keys_occur_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    for path in sorted((BUNDLES / name / "configs").glob("*.json")):
        assert ConfigParser.load_config_file(str(path))


@every
def test_targets_exist(name: str) -> None:
    locator = ComponentLocator()
    for path in sorted((BUNDLES / name / "configs").glob("*.json")):
        for entry in dictionaries(read(path)):
            if "_target_" not in entry:
                continue
            wanted = entry["_target_"]
            module, _, attribute = wanted.rpartition(".")
            if not module:
                assert locator.get_component_module_name(wanted), f"{path.name}: {wanted}"
                continue
            if attribute.startswith("from_"):  # a constructor of a class
                module, _, owner = module.rpartition(".")
                assert hasattr(optional_import(module, name=owner)[0], attribute), wanted
                continue
            assert optional_import(module, name=attribute)[1], f"{path.name}: {wanted}"


@every
def test_imports_bind_the_names_that_are_used(name: str) -> None:
    for file in ("train", "multi_gpu_train", "evaluate", "inference"):
        content = config(name, file)
        lines = content.get("imports") or content.get("+imports") or []
        for line in lines:
            assert re.fullmatch(r"\$import (\w+|[\w.]+ as \w+)", line), f"{file}: {line}"


@every
def test_network_and_recipe_are_the_same_everywhere(name: str) -> None:
    train, inference = config(name, "train"), config(name, "inference")
    for key in ("network_def", "channels", "labels", "spacing", "spatial_shape"):
        assert train[key] == inference[key], key
    for file in ("multi_gpu_train", "evaluate", *(["small"] if name in JOINT else [])):
        assert not any(key.startswith("network_def") for key in config(name, file))


@every
def test_recipe_can_be_read(name: str) -> None:
    content = config(name, "inference")
    recipe = Recipe.from_config({key: content[key] for key in RECIPE_IDS})
    assert recipe.synthesis.kind == ("joint" if name in JOINT else recipe.synthesis.kind)
    assert set(content["recipe"]) == set(RECIPE_IDS)


@every
def test_network_takes_dropout(name: str) -> None:
    content = shrunk(config(name, "inference"))
    assert content["network_def"]["dropout"] == 0.0
    content["network_def"]["dropout"] = 0.3
    network = ConfigParser(content).get_parsed_content("network_def")
    rates = {layer.p for layer in network.modules() if isinstance(layer, torch.nn.Dropout3d)}
    assert rates == {0.3}


@pytest.mark.parametrize("names", [JOINT, INSERTING])
def test_inference_differs_in_facts_alone(names: tuple[str, ...]) -> None:
    first, second = (config(name, "inference") for name in names)
    assert list(first) == list(second)
    assert [key for key in first if first[key] != second[key] and key not in FACTS] == []
    assert set(first["synthesis"]) - {"kind", "brain_extracted"} == set(second["synthesis"]) - {
        "kind",
        "brain_extracted",
    }


# -- metadata -----------------------------------------------------------------------------------


@every
def test_metadata_follows_our_schema(name: str) -> None:
    schema = read(SCHEMA)
    jsonschema.Draft201909Validator.check_schema(schema)
    jsonschema.validate(config(name, "metadata"), schema, jsonschema.Draft201909Validator)


def test_our_schema_refuses_what_tools_trip_over() -> None:
    schema = read(SCHEMA)
    validator = jsonschema.Draft201909Validator(schema)
    good = config(NAMES[0], "metadata")
    tensors = good["network_data_format"]
    foreign = {"host": tensors["inputs"]["image"]}
    faults = [
        {**good, "version": "one"},
        {**good, "supported_apps": []},
        {key: value for key, value in good.items() if key != "schema"},
        {
            **good,
            "network_data_format": {**tensors, "inputs": foreign},
        },
        {**good, "extra_data_format": {"inputs": {}}},
    ]
    image = tensors["inputs"]["image"]
    for wrong in ({"spatial_shape": ["*", 8, 8]}, {"dtype": "float16"}, {"num_channels": "2"}):
        inputs = {"image": {**image, **wrong}}
        faults.append({**good, "network_data_format": {**tensors, "inputs": inputs}})
    assert validator.is_valid(good)
    assert [fault for fault in faults if validator.is_valid(fault)] == []


@every
def test_metadata_agrees_with_the_configurations(name: str) -> None:
    metadata, content = config(name, "metadata"), config(name, "inference")
    form = metadata["network_data_format"]
    image, pred = form["inputs"]["image"], form["outputs"]["pred"]
    assert next(iter(form["inputs"])) == "image" and next(iter(form["outputs"])) == "pred"
    channels = [channel["name"] for channel in content["channels"]]
    assert image["channel_def"] == {str(index): each for index, each in enumerate(channels)}
    assert pred["channel_def"] == {str(value): key for key, value in content["labels"].items()}
    assert pred["channel_def"]["0"] == "background"
    assert image["num_channels"] == len(channels)
    assert pred["num_channels"] == 1 + len(channels), "the field of the mask, then the image"
    assert image["spatial_shape"] == pred["spatial_shape"] == content["spatial_shape"]
    top = 1.0 + 2 * max(
        getattr(channel.intensity, "headroom", 0.0)
        for channel in Recipe.from_config({key: content[key] for key in RECIPE_IDS}).channels
    )
    assert image["value_range"] == pytest.approx([-1.0, top])
    after = form["post_processed_outputs"]
    assert after["pred"]["num_channels"] == 1 and after["pred"]["dtype"] == "uint8"
    assert after["synthetic"]["channel_def"] == image["channel_def"]


@every
def test_versions_are_those_of_the_project(name: str) -> None:
    metadata = config(name, "metadata")
    root = BUNDLES.parent
    declared = re.search(r"^version = (\S+)", (root / "setup.cfg").read_text(), re.MULTILINE)
    assert declared is not None
    assert metadata["required_packages_version"]["medvae3d"] == declared[1]
    assert metadata["version"] in metadata["changelog"]
    pins: dict[str, set[str]] = {}
    for line in (root / "constraints.txt").read_text().splitlines():
        found = re.match(r"([\w.-]+)==([\w.]+)", line)
        if found:
            pins.setdefault(found[1], set()).add(found[2])
    wanted = {
        **metadata["required_packages_version"],
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    del wanted["medvae3d"]
    assert [key for key, version in wanted.items() if version not in pins[key]] == []


# -- what MONAI Label relies on -----------------------------------------------------------------


@every
def test_inference_stands_alone(name: str) -> None:
    content = config(name, "inference")
    assert "initialize" not in content, "MONAI Label never evaluates it"
    assert not [text for text in texts(content) if text.startswith("%") or ".json" in text]
    assert content["bundle_root"] == "."
    # MONAI Label reads relative names from a folder of its own.
    assert not [text for text in texts(config(name, "train")) if re.match(r"%.*\.json", text)]
    assert content["handlers"][0]["_disabled_"] == "$not os.path.exists(@ckpt_path)"


@every
def test_wishes_are_scalars_that_reach_the_inferer(name: str) -> None:
    content = config(name, "inference")
    parser = ConfigParser(config(name, "inference"))
    shown = parser.get_parsed_content("displayable_configs")
    assert all(isinstance(value, (bool, int, float, str)) for value in shown.values())
    wanted = {"seed", "temperature", "volume_ml", "publish", "publish_tag"}
    wanted |= set() if name in JOINT else {"lesions", "at_x", "at_y", "at_z", "at_mm"}
    assert set(shown) == wanted
    body = json.dumps([content["inferer"], content["postprocessing"]])
    assert [key for key in shown if f"@displayable_configs#{key}" not in body] == []


@every
def test_postprocessing_returns_to_the_host_and_saves_last(name: str) -> None:
    content = config(name, "inference")
    kinds = [target(entry) for entry in content["postprocessing"]["transforms"]]
    assert kinds.index("Invertd") < kinds.index("CastToTyped") < kinds.index("SaveImaged")
    assert set(kinds[kinds.index("SaveImaged") :]) == {"SaveImaged"}
    inverted = content["postprocessing"]["transforms"][kinds.index("Invertd")]
    assert inverted["keys"] == ["pred", "synthetic"]
    before = [target(entry) for entry in content["preprocessing"]["transforms"]]
    assert before[0] == "LoadHostd" and "Spacingd" not in before


@every
def test_training_has_what_label_overrides(name: str) -> None:
    content = config(name, "train")
    assert {"network", "network_def", "train", "validate"} <= set(content)
    assert "max_epochs" in content["train"]["trainer"]
    assert content["train"]["dataset"]["data"] and content["validate"]["dataset"]["data"]
    assert all(isinstance(entry, dict) for entry in content["train"]["handlers"])
    assert "displayable_configs" not in content
    paths = [entry.get("path", "") for entry in content["train"]["handlers"]]
    weights = [Path(re.findall(r"/(\w+\.pt)'", path)[0]).name for path in paths if ".pt'" in path]
    assert min(weights, key=len) == "model.pt" and len(weights) == 2


# -- training on several processes, evaluation, small data --------------------------------------


@every
def test_only_the_first_process_prints_and_writes(name: str) -> None:
    content = config(name, "train")
    loud = {"StatsHandler", "TensorBoardStatsHandler", "HistoryWriter", "ProgressLog",
            "ValidationWriter", "GrainFitter", "PriorFitter", "WeightsSaver", "TrainingWatch",
            "LatentWatch", "SampleGrid", "mlflow_log"}  # fmt: skip
    for part in ("train", "validate"):
        for entry in content[part]["handlers"]:
            is_quiet = str(entry.get("_disabled_", "")).startswith("$@rank > 0")
            assert is_quiet == (target(entry) in loud), target(entry)


def test_overlays_are_the_same_for_all() -> None:
    first = config(NAMES[0], "multi_gpu_train")
    assert all(config(name, "multi_gpu_train") == first for name in NAMES)
    assert config(JOINT[0], "small") == config(JOINT[1], "small")
    evaluations = [config(name, "evaluate") for name in NAMES]
    for each in evaluations:
        models = each.pop("validate#evaluator#models")
        assert all("@network" in model for model in models.values())
    assert all(each == evaluations[0] for each in evaluations)


@pytest.mark.parametrize("name", JOINT)
def test_recipe_for_small_data_changes_numbers_only(name: str) -> None:
    small, train = config(name, "small"), config(name, "train")
    changes = {key: value for key, value in small.items() if not key.startswith("+")}
    assert set(changes) <= set(train)
    assert all(isinstance(value, int) for value in changes.values())
    steps = changes["max_epochs"] * train["epoch_length"]
    assert steps < train["max_epochs"] * train["epoch_length"]
    assert changes["adversarial_start"] < changes["flow_start"] < steps


@every
def test_settings_are_explained(name: str) -> None:
    for file in ("train", "inference"):
        content = config(name, file)
        known = {key for entry in dictionaries(content) for key in entry}
        assert [key for key in content["_desc_"] if key not in known | {"what"}] == []


# -- documents and licences ---------------------------------------------------------------------


@every
def test_no_personal_paths(name: str) -> None:
    root = BUNDLES / name
    files = [*root.rglob("*.json"), *root.rglob("*.md"), *root.rglob("*.txt"), root / "LICENSE"]
    found = [
        path.name
        for path in files
        if re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", path.read_text())
    ]
    assert found == []


@every
def test_licences_are_stated(name: str) -> None:
    licence = (BUNDLES / name / "LICENSE").read_text()
    assert licence.startswith("Weights\n")
    assert "Apache License" in licence and "Version 2.0" in licence
    head = licence[: licence.index("Apache License")]
    data = (BUNDLES / name / "docs" / "data_license.txt").read_text()
    assert re.match(r"1\. .+", data) and "https://" in data and "Attribution" in data
    stated = config(name, "metadata")["licence"]
    short = "CC BY-SA 4.0" if name.startswith("hippocampus") else "CC BY"
    assert short in head and short in data
    assert stated.startswith(short.replace(" ", "-"))


@every
def test_card_has_the_sections_of_the_model_zoo(name: str) -> None:
    card = (BUNDLES / name / "docs" / "README.md").read_text()
    found = re.findall(r"^## (.+)$", card, re.MULTILINE)
    assert [section for section in found if section in SECTIONS] == list(SECTIONS)
    assert card.startswith("# " + config(name, "metadata")["name"])
    assert "TorchScript" in card and "TensorRT" in card and "not clinical" in card


@pytest.mark.parametrize(
    ("name", "page"), [*((name, "card") for name in NAMES), ("sts_petct_hvae", "how-to")]
)
def test_commands_name_files_and_settings_that_exist(name: str, page: str) -> None:
    path = BUNDLES / name / "docs" / "README.md"
    path = BUNDLES.parent / "docs" / "how-to" / "bundles.md" if page == "how-to" else path
    card = path.read_text()
    for file in re.findall(r"\$B/(configs/[\w.]+)", card):
        assert (BUNDLES / name / file).is_file(), file
    known = {key for file in FILES for key in config(name, file)} | {"config_file", "bundle_root"}
    known |= {"standalone", "nproc_per_node", "net_id", "meta_file", "ckpt_file", "filepath"}
    known |= {"use_trace", "input_shape", "displayable_configs"}
    blocks = re.findall(r"```sh\n(.*?)```", card, re.DOTALL)
    used = re.findall(r"--(\w+)", " ".join(b for b in blocks if "monai.bundle" in b))
    assert sorted(set(used) - known) == []


@every
def test_shipped_weights_are_small_enough(name: str) -> None:
    weights = sorted((BUNDLES / name).glob("models/*.pt"))
    assert all(path.stat().st_size <= 16 * 2**20 for path in weights if path.name == "model.pt")
