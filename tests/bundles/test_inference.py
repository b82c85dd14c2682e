"""What ``inference.json`` makes: samples by seed, and masks and images on the grids of hosts."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import LoadImaged, SaveImaged
from small_bundles import INSERTING, JOINT, NAMES, config, run, small_copy, volume, workflow

import medvae3d
from medvae3d.apps.inference import (
    SynthesisInferer,
    UnpackSampledd,
    find_hosts,
    host_items,
)
from medvae3d.apps.label import PublishSyntheticd, label_app
from medvae3d.errors import GridError, RangeError, SettingError, UnreadableFileError
from medvae3d.geometry import Grid
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.synthesis.hosts import host_in_memory
from medvae3d.synthesis.recipe import Recipe

Trained = Callable[[str], Path]


def affine(kind: str, spacing: list[float]) -> np.ndarray:
    """Of a host: axes as in the weights, flipped, permuted and anisotropic, or turned."""
    s = np.array(spacing)
    made = np.eye(4)
    if kind == "flipped":
        made[:3, :3] = np.diag(s * [-1, -1, 1])
    elif kind == "anisotropic":  # superior, right, posterior; coarser and finer voxels
        made[:3, :3] = np.array([[0, 1, 0], [0, 0, -1], [1, 0, 0]]) @ np.diag(s * [1.6, 0.9, 1.2])
    elif kind == "rotated":
        c, d = np.cos(0.2), np.sin(0.2)
        made[:3, :3] = np.array([[c, -d, 0], [d, c, 0], [0, 0, 1]]) @ np.diag(s * [1, 1, 1.1])
    else:
        made[:3, :3] = np.diag(s)
    made[:3, 3] = [12.5, -31.0, 7.25]
    return made


def write_host(folder: Path, name: str, kind: str, seed: int = 0) -> Path:
    """A host for a bundle, one file: 3D, or 4D with a channel a volume."""
    content = config(name, "inference")
    grid = Grid((26, 30, 28), affine(kind, content["spacing"]))
    image, _ = volume(content["channels"], grid, 50 + seed, lesion=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}{seed}.nii.gz"
    array = np.moveaxis(image, 0, -1)
    array = array[..., 0] if array.shape[-1] == 1 else array
    nib.save(nib.Nifti1Image(array, grid.affine), path)
    return path


def synthesise(bundle: Path, out: Path, **changes: Any) -> dict[str, Path]:
    """Runs ``inference.json``; the files by name."""
    made = workflow(bundle / "configs" / "inference.json", "infer", output_dir=str(out), **changes)
    run(made)
    return {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}


def hashes(files: dict[str, Path]) -> dict[str, str]:
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if path.suffix != ".png"
    }


# -- by seed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_has_all_properties(name: str, trained: Trained, tmp_path: Path) -> None:
    write_host(tmp_path, name, "plain")
    made = workflow(
        trained(name) / "configs" / "inference.json", "infer", dataset_dir=str(tmp_path)
    )
    assert made.check_properties() == []
    assert len(made.dataset) == 1
    assert made.channel_def == {
        str(value): key for key, value in config(name, "inference")["labels"].items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_has_all_properties_without_weights_or_hosts(name: str, tmp_path: Path) -> None:
    bundle = small_copy(name, tmp_path / name)
    made = workflow(bundle / "configs" / "inference.json", "infer")
    assert made.check_properties() == []
    assert len(made.dataset) == 0


@pytest.mark.parametrize("name", NAMES)
def test_writes_what_the_package_writes(name: str, trained: Trained, tmp_path: Path) -> None:
    bundle = trained(name)
    by_run = synthesise(bundle, tmp_path / "run", count=2, seed=5, start=1)
    medvae3d.load_bundle(bundle).write(tmp_path / "package", 2, 5, start=1)
    by_package = {
        path.relative_to(tmp_path / "package").as_posix(): path
        for path in (tmp_path / "package").rglob("*")
        if path.is_file()
    }
    assert hashes(by_run) == hashes(by_package)
    assert len([file for file in by_run if file.startswith("labelsTr/")]) == 2


def test_another_seed_makes_others(trained: Trained, tmp_path: Path) -> None:
    bundle = trained(JOINT[0])
    first = synthesise(bundle, tmp_path / "a", count=1, seed=1)
    again = synthesise(bundle, tmp_path / "b", count=1, **{"displayable_configs#seed": 1})
    other = synthesise(bundle, tmp_path / "c", count=1, seed=2)
    assert hashes(first) == hashes(again)
    assert not set(hashes(first).values()) & set(hashes(other).values())


def test_overrides_reach_the_samples(trained: Trained, tmp_path: Path) -> None:
    files = synthesise(
        trained(JOINT[0]),
        tmp_path,
        count=1,
        **{"synthesis#temperature": 0.5, "displayable_configs#volume_ml": 20.0},
    )
    record = json.loads(next(p for f, p in files.items() if f.startswith("records/")).read_text())
    assert record["options"]["temperature"] == 0.5
    assert record["checks"]["volume_ml"] == pytest.approx(20, abs=5)


def test_volume_beyond_the_training_set_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as raised:  # MONAI's, around ours
        synthesise(trained(JOINT[0]), tmp_path, **{"displayable_configs#volume_ml": 9e4})
    assert isinstance(raised.value.__cause__, RangeError)
    assert not list(tmp_path.iterdir())


def test_missing_folder_of_hosts_is_no_wish_for_samples_without(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="Name one with NIfTI files"):
        find_hosts(str(tmp_path / "absent"))
    assert find_hosts("") == []


def test_hosts_of_several_channels_are_found_by_number(tmp_path: Path) -> None:
    for name in ("b_0000.nii.gz", "b_0001.nii.gz", "a.nii", "notes.txt"):
        (tmp_path / name).touch()
    found = find_hosts(str(tmp_path))
    assert found == [
        str(tmp_path / "a.nii"),
        [str(tmp_path / "b_0000.nii.gz"), str(tmp_path / "b_0001.nii.gz")],
    ]
    assert host_items(found)[0] == {"image": str(tmp_path / "a.nii")}
    assert host_items("one.nii.gz") == [{"image": "one.nii.gz"}]


# -- on the grid of a host ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_results_lie_on_the_grid_of_each_host(name: str, trained: Trained, tmp_path: Path) -> None:
    kinds = ("plain", "flipped", "anisotropic", "rotated")
    hosts = [write_host(tmp_path / "hosts", name, kind) for kind in kinds]
    files = synthesise(trained(name), tmp_path / "out", dataset_dir=str(tmp_path / "hosts"), seed=3)
    assert len(files) == 2 * len(kinds)
    labels = config(name, "inference")["labels"].values()
    for host in hosts:
        stem, given = host.name.removesuffix(".nii.gz"), nib.load(host)
        mask, made = (nib.load(files[f"{stem}_{kind}.nii.gz"]) for kind in ("mask", "synthetic"))
        assert mask.shape == given.shape[:3]
        assert made.shape == given.shape
        for image in (mask, made):
            np.testing.assert_allclose(image.affine, given.affine, atol=1e-4)
        assert mask.get_data_dtype() == np.uint8
        assert made.get_data_dtype() == np.float32
        found = set(np.unique(np.asarray(mask.dataobj)).tolist())
        assert found <= set(labels) and len(found) > 1
        assert np.isfinite(made.get_fdata()).all()


@pytest.mark.parametrize("name", INSERTING)
def test_voxels_far_from_a_lesion_are_those_of_the_host(
    name: str, trained: Trained, tmp_path: Path
) -> None:
    host = write_host(tmp_path / "hosts", name, "flipped")
    files = synthesise(
        trained(name),
        tmp_path / "out",
        hosts=[str(host)],
        **{f"displayable_configs#at_{axis}": at for axis, at in (("x", 11), ("y", 16), ("z", 14))},
    )
    mask = np.asarray(nib.load(files["flipped0_mask.nii.gz"]).dataobj)
    change = nib.load(files["flipped0_synthetic.nii.gz"]).get_fdata() - nib.load(host).get_fdata()
    changed = np.abs(change).reshape(*mask.shape, -1).max(-1) > 0
    assert changed[mask > 0].mean() > 0.5
    assert not changed[:3].any() and not changed[:, :3].any()
    centre = np.argwhere(mask > 0).mean(0)
    # Of the file's own voxels, which run the other way than the axes of the weights.
    np.testing.assert_allclose(centre, (11, 16, 14), atol=1.5)


def test_joint_volume_lies_in_the_middle_the_right_way_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A known volume, whose label 2 is to the left, in a host whose first axis points left."""
    content = config("hippocampus_mri_hvae", "inference")
    keys = ("channels", "labels", "spacing", "synthesis")
    inferer = SynthesisInferer({key: content[key] for key in keys} | {"spatial_shape": [16] * 3})
    label = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    label[:, 8:12, 5:11, 5:11], label[:, 4:8, 5:11, 5:11] = 1, 2
    image = torch.full((1, 16, 16, 16), 100.0) + 50 * label
    grid = Grid.centred((16, 16, 16), (1.0, 1.0, 1.0))
    sample = SimpleNamespace(image=image, label=label, grid=grid)
    statistics = TrainingStatistics()
    statistics.image_high.fill_(100)
    network: Any = SimpleNamespace(statistics=statistics)
    host = Grid((40, 30, 24), affine("flipped", [1.0, 1.0, 1.0]))
    inputs = MetaTensor(torch.zeros(1, 1, *host.shape), affine=torch.tensor(host.affine))
    monkeypatch.setattr("medvae3d.apps.inference.generate", lambda *args, **kwargs: iter([sample]))
    mask = inferer(inputs, network)["mask"][0, 0]
    centres = [torch.nonzero(mask == value).float().mean(0).tolist() for value in (1, 2)]
    assert centres[0][0] < centres[1][0], "right comes first where the axis points left"
    np.testing.assert_allclose(np.mean(centres, axis=0), (19.5, 14.5, 11.5), atol=0.6)
    assert mask.eq(1).sum() == pytest.approx(144, abs=40)


@pytest.mark.parametrize("name", (JOINT[0], INSERTING[1]))
def test_same_seed_same_bytes_and_each_host_its_own(
    name: str, trained: Trained, tmp_path: Path
) -> None:
    hosts = [str(write_host(tmp_path / "hosts", name, "plain", seed)) for seed in (0, 1)]
    first = synthesise(trained(name), tmp_path / "a", hosts=hosts, seed=7)
    again = synthesise(trained(name), tmp_path / "b", hosts=hosts[::-1], seed=7)
    other = synthesise(trained(name), tmp_path / "c", hosts=hosts, seed=8)
    assert hashes(first) == hashes(again)
    assert not set(hashes(first).values()) & set(hashes(other).values())
    assert len(set(hashes(first).values())) == len(first)


def test_host_that_cannot_hold_a_lesion_is_refused() -> None:
    content = config("brain_mri_ms_pavae", "inference")
    keys = ("channels", "labels", "spacing", "spatial_shape", "synthesis")
    recipe = {key: content[key] for key in keys}
    made = Recipe.from_config(recipe)
    small = Grid.centred((10, 40, 40), (1.0, 1.0, 1.0))
    with pytest.raises(GridError, match="10 x 40 x 40"):
        host_in_memory(np.random.default_rng(0).random((1, *small.shape), np.float32), small, made)
    large = Grid.centred((40, 40, 40), (1.0, 1.0, 1.0))
    with pytest.raises(SettingError, match="2 channels; these weights need 1: FLAIR"):
        host_in_memory(np.zeros((2, *large.shape), np.float32), large, made)


# -- as MONAI Label does it ---------------------------------------------------------------------


def label_request(bundle: Path, host: Path, **params: Any) -> dict[str, Any]:
    """One inference in the order of events of a MONAI Label server."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(bundle)})
    network = parser.get_parsed_content("network_def", instantiate=True)
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    shown = parser.get_parsed_content("displayable_configs", instantiate=True)
    data: dict[str, Any] = {**shown, **params, "image": str(host), "image_path": str(host)}
    parser["displayable_configs"].update({key: data[key] for key in shown})
    parser.parse()
    parser.config.update({"device": "cpu"})
    for step in parser.get_parsed_content("preprocessing").transforms:
        data = step(data)
        if isinstance(step, LoadImaged):
            data["image_meta_dict"] = dict(data["image"].meta)
    with torch.no_grad():
        answer = parser.get_parsed_content("inferer")(data["image"][None], network.eval())
    data["pred"] = {key: value[0] for key, value in answer.items()}
    for step in parser.get_parsed_content("postprocessing").transforms:
        if not isinstance(step, SaveImaged):
            data = step(data)
    return data


@pytest.mark.parametrize("name", NAMES)
def test_label_gets_the_mask_that_a_run_writes(name: str, trained: Trained, tmp_path: Path) -> None:
    host = write_host(tmp_path / "hosts", name, "anisotropic")
    files = synthesise(trained(name), tmp_path / "out", hosts=[str(host)], seed=4)
    data = label_request(trained(name), host, seed=4)
    assert data["pred"].dtype == torch.uint8
    written = np.asarray(nib.load(files["anisotropic0_mask.nii.gz"]).dataobj)
    np.testing.assert_array_equal(data["pred"][0].numpy(), written)
    torch.manual_seed(99)  # what other requests did before changes nothing
    again = label_request(trained(name), host, seed=4)
    assert torch.equal(again["synthetic"], data["synthetic"])
    other = label_request(trained(name), host, seed=5)
    assert not torch.equal(other["synthetic"], data["synthetic"])
    assert "result" not in data


def test_monai_label_is_not_imported_with_the_package() -> None:
    found = [
        f"{path.name}:{node.lineno}"
        for path in Path(medvae3d.__file__).parent.rglob("*.py")
        if path.parent.name != "label_app"  # which nothing else imports
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "monailabel" in ast.unparse(node)
    ]
    assert found == []


def test_publishing_does_nothing_without_a_server() -> None:
    data = {"image": torch.zeros(1, 4, 4, 4), "pred": torch.zeros(1, 4, 4, 4)}
    assert label_app() is None
    assert PublishSyntheticd(("image", "pred"), enabled=True)(data) == data


def test_publishing_adds_image_and_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: dict[str, Any] = {}
    known: dict[str, dict[str, Any]] = {}

    class Store:
        def list_images(self) -> list[str]:
            return list(known)

        def get_image_info(self, name: str) -> dict[str, Any]:
            return known[name]

        def add_image(self, name: str, file: str, info: dict[str, Any]) -> str:
            stored["image"] = (name, nib.load(file).get_fdata(), nib.load(file).affine)
            known[name] = info
            return name

        def save_label(self, name: str, file: str, tag: str, info: dict[str, Any]) -> str:
            stored["label"] = (name, tag, nib.load(file).get_data_dtype())
            return name

    module: Any = ModuleType("monailabel.interfaces.utils.app")
    module.apps = {"app": 1}
    module.app_instance = lambda: SimpleNamespace(datastore=lambda: Store())
    for name in ("monailabel", "monailabel.interfaces", "monailabel.interfaces.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "monailabel.interfaces.utils.app", module)
    place = torch.tensor(affine("flipped", [1.0, 1.0, 2.0]))
    data = {
        "image_path": "/studies/host.nii.gz",
        "synthetic": MetaTensor(torch.rand(2, 4, 5, 6), affine=place),
        "pred": MetaTensor(torch.ones(1, 4, 5, 6), affine=place),
    }
    made = PublishSyntheticd(("synthetic", "pred"), enabled="true", seed=3)(data)
    assert made["result"] == {
        "synthetic_image": "host_syn3",
        "synthetic_label": "host_syn3",
        "label_tag": "synthetic",
    }
    assert stored["image"][1].shape == (4, 5, 6, 2)
    np.testing.assert_allclose(stored["image"][2], place.numpy())
    assert stored["label"] == ("host_syn3", "synthetic", np.dtype(np.uint8))
    assert known["host_syn3"]["source"] == "host" and known["host_syn3"]["synthetic"]
    publish = PublishSyntheticd(("synthetic", "pred"), enabled=True, seed=3, tag="final")
    assert publish(data)["result"]["synthetic_image"] == "host_syn3", "the same pair, once"
    data["synthetic"] = data["synthetic"] + 1
    assert publish(data)["result"]["synthetic_image"] == "host_syn3_2", "nothing is replaced"
    assert stored["label"][1] == "final"


def test_unpacking_refuses_what_another_inferer_made() -> None:
    with pytest.raises(SettingError, match="Keep that inferer"):
        UnpackSampledd("pred")({"pred": torch.zeros(1, 2, 2, 2)})


def test_wishes_may_come_as_text() -> None:
    content = config(JOINT[0], "inference")
    inferer = SynthesisInferer(
        {key: content[key] for key in ("channels", "labels", "spacing", "spatial_shape")},
        seed="3",  # type: ignore[arg-type]
        volume_ml="12.5",  # type: ignore[arg-type]
    )
    wishes = inferer.wishes
    assert (wishes.seed, wishes.volume_ml, wishes.at) == (3, (12.5, 12.5), None)
    with pytest.raises(SettingError, match="volume_ml is 'much'"):
        SynthesisInferer(inferer.recipe, volume_ml="much")  # type: ignore[arg-type]
