"""Claims about the report of a bundle: what is in it, what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundles as tiny
import torch

from medvae3d.apps import figures as app
from medvae3d.data.datalists import Case, write_datalist
from medvae3d.data.volumes import write_volume
from medvae3d.errors import DataListError, SettingError, UnreadableFileError
from medvae3d.evaluation import figures as judge
from medvae3d.evaluation.curves import plot_control, plot_history
from medvae3d.geometry import Grid

TINY = app.Effort(3, 6, 2, 2, 2, 0, 2)


@pytest.fixture(scope="module")
def ball_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight cases of two channels that look like what the tiny bundles make."""
    folder = tmp_path_factory.mktemp("balls")
    generator = torch.Generator().manual_seed(3)
    masks = (tiny.balls(8, generator) > 0).numpy().astype(np.uint8)
    grid = Grid.centred((tiny.SIDE,) * 3, tiny.SPACING)
    rng = np.random.default_rng(0)
    cases = []
    for number, mask in enumerate(masks[:, 0]):
        files = []
        for name, low, high in (("pet", 1.0, 6.0), ("ct", -100.0, 100.0)):
            image = np.where(mask > 0, high, low) + rng.normal(0, 0.05 * high, mask.shape)
            files.append(folder / f"ball_{number:03d}_{name}.nii.gz")
            write_volume(files[-1], image.astype(np.float32), grid, dtype=np.float32)
        label = folder / f"ball_{number:03d}_gtv.nii.gz"
        write_volume(label, mask, grid, dtype=np.uint8)
        split = "training" if number < 5 else "validation"
        cases.append(Case(tuple(files), label, f"ball_{number:03d}", split))
    write_datalist(folder / "datalist.json", cases)
    return folder / "datalist.json"


@pytest.fixture(scope="module")
def body_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bodies of 40 voxels a side with three round lesions each, and one mask alone."""
    folder = tmp_path_factory.mktemp("bodies")
    places = np.stack(np.meshgrid(*[np.arange(40) - 19.5] * 3, indexing="ij"))
    body = np.sqrt((places**2).sum(0)) < 18
    grid = Grid.centred((40,) * 3, tiny.SPACING)
    cases = []
    for number, split in enumerate(("training", "validation", "training")):
        rng = np.random.default_rng(number)
        mask = np.zeros((40,) * 3, np.uint8)
        for middle in ((-9, 0, 0), (6, 7, 0), (3, -6, 4)):
            away = places - np.reshape(middle, (3, 1, 1, 1)) - rng.uniform(-1, 1, (3, 1, 1, 1))
            mask[np.sqrt((away**2).sum(0)) < 2.5 + 0.3 * number] = 1
        files = []
        for name, out, tissue, lesion in (("pet", 0.0, 1.5, 6.0), ("ct", -190.0, 20.0, 90.0)):
            image = np.where(mask > 0, lesion, np.where(body, tissue, out))
            image = image + rng.normal(0, 0.05 * lesion, image.shape) * body
            files.append(folder / f"body_{number:03d}_{name}.nii.gz")
            write_volume(files[-1], image.astype(np.float32), grid, dtype=np.float32)
        label = folder / f"body_{number:03d}_gtv.nii.gz"
        write_volume(label, mask, grid, dtype=np.uint8)
        images = tuple(files) if number < 2 else ()
        cases.append(Case(images, label, f"body_{number:03d}", split))
    write_datalist(folder / "datalist.json", cases)
    return folder / "datalist.json"


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "QUICK", TINY)


def numbers_in(value: Any) -> bool:
    """Whether there is nothing in it but containers, numbers and words."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and numbers_in(v) for k, v in value.items())
    if isinstance(value, list):
        return all(numbers_in(v) for v in value)
    return value is None or type(value) in (bool, int, float, str)


@pytest.mark.integration
@pytest.mark.parametrize("network", [tiny.JOINT, tiny.TWO_STAGE])
def test_a_bundle_gets_all_figures_that_apply_to_it(tmp_path, ball_list, network):
    bundle = tiny.write_bundle(tmp_path / "tiny_bundle", network, max_attempts=60)
    said: list[str] = []
    found = app.report(bundle, ball_list, out=tmp_path / "out", quick=True, progress=said.append)
    own = {"shape", "texture"} if network is tiny.TWO_STAGE else {"reconstruction", "evidence"}
    shared = {"control", "agreement", "copying", "throughput", "generation"}
    assert own | shared <= set(found) and said
    assert not [name for name in own | shared if "not_computed" in found[name]]
    assert numbers_in(found)
    assert json.loads((tmp_path / "out" / "figures.json").read_text()) == found
    text = (tmp_path / "out" / "figures.md").read_text()
    assert all(f"## {name.capitalize()}" in text for name in own | shared)
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {"control.png", *(f"{n}.png" for n in own & {"reconstruction", "texture"})}
    again = app.report(
        bundle, ball_list, out=tmp_path / "out", quick=True, sections=sorted({*own, "agreement"})
    )
    assert all(again[name] == found[name] for name in {*own, "agreement", "generation"})


@pytest.mark.integration
def test_lesions_in_hosts_are_judged_patch_by_patch(tmp_path, body_list):
    bundle = tiny.write_bundle(
        tmp_path / "putting", tiny.TWO_STAGE, kind="insertion", max_attempts=60, max_components=9
    )
    wanted = "shape,texture,control,agreement,copying"
    found = app.report(bundle, body_list, out=tmp_path / "out", quick=True, sections=wanted)
    assert not [name for name in found if "not_computed" in str(found[name])]
    assert (found["shape"]["train"], found["shape"]["unseen"]) == (6, 3)
    assert (found["texture"]["train"], found["texture"]["unseen"]) == (3, 3)
    assert found["control"]["samples"] == TINY.controlled
    assert found["agreement"]["synthetic"] == TINY.samples
    assert found["generation"]["samples"] == 1
    constant = found["texture"]["rows"]["constant: mean of the training lesions"]["nmse"]["mean"]
    assert constant < 0.02  # both bodies have lesions of one brightness


@pytest.mark.integration
def test_a_twin_without_the_flow_stands_beside_the_model(tmp_path, ball_list):
    network = {**tiny.JOINT, "_target_": "medvae3d.models.zoo.hvae", "num_steps": 1}
    made = tiny.built(network)
    made.load_state_dict(tiny.taught().state_dict(), strict=False)
    bundle = tiny.write_bundle(tmp_path / "with_flow")
    (bundle / "configs" / "inference.json").write_text(json.dumps(tiny.config(network)))
    torch.save(made.state_dict(), bundle / "models" / "model.pt")
    twin = tmp_path / "twin.pt"
    torch.save(tiny.taught().state_dict(), twin)
    wanted = "reconstruction,evidence"
    found = app.report(bundle, ball_list, quick=True, twin={"equal time": twin}, sections=wanted)
    name = "twin without the flow, equal time"
    rows = found["reconstruction"]["rows"]
    assert rows[name] == rows["model"]
    assert found["evidence"]["rows"][name] == found["evidence"]["rows"]["K = 0"]
    assert "K = 1" in found["evidence"]["rows"]
    torch.save({"foreign": torch.zeros(1)}, twin)
    with pytest.raises(SettingError, match="twin has the same layers"):
        app.report(bundle, ball_list, quick=True, twin=twin, sections=wanted)


def test_a_section_that_fails_says_why_and_holds_up_no_other(tmp_path, ball_list, monkeypatch):
    bundle = tiny.write_bundle(tmp_path / "tiny_bundle")

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise SettingError("too little of everything")

    monkeypatch.setattr("medvae3d.apps.figure_sections.evidence", broken)
    found = app.report(bundle, ball_list, quick=True, sections="reconstruction,evidence")
    assert found["evidence"] == {"not_computed": "SettingError: too little of everything"}
    assert "model" in found["reconstruction"]["rows"]


def test_lists_and_sections_that_cannot_be_used_are_refused(tmp_path, ball_list):
    bundle = tiny.write_bundle(tmp_path / "tiny_bundle")
    with pytest.raises(SettingError, match="allowed are reconstruction"):
        app.report(bundle, ball_list, sections="beauty")
    with pytest.raises(DataListError, match="no case with a label under testing"):
        app.report(bundle, ball_list, "testing")
    with pytest.raises(SettingError, match="no flow"):
        pair = tiny.write_bundle(tmp_path / "pair", tiny.TWO_STAGE)
        app.report(pair, ball_list, twin="x.pt", sections="shape")


# -- targets and tables ---------------------------------------------------------------------------


def some_figures() -> dict[str, Any]:
    def score(value: float) -> dict[str, Any]:
        return {"mean": value, "low": value - 0.1, "high": value + 0.1, "n": 4}

    rows = {
        "model": {"nmse": score(0.1), "psnr": score(20), "ssim": score(0.8), "dice": score(0.9)},
        "PCA, 3 components": {"nmse": score(0.2), "psnr": score(18), "ssim": score(0.9),
                              "dice": score(0.5)},
    }  # fmt: skip
    return {
        "bundle": "tiny 1.0",
        "reconstruction": {"train": 5, "rows": rows},
        "generation": {"rejection_rate": 0.3},
        "agreement": {
            "ratio": 0.95,
            "rows": {
                "real, unseen": {"dice": score(0.8)},
                "synthetic": {"dice": score(0.76)},
                "synthetic, shuffled": {"dice": score(0.3)},
            },
        },
    }


def test_targets_say_what_is_reached_and_what_is_not():
    found = {each["claim"]: each["reached"] for each in judge.targets(some_figures())}
    assert found == {
        "reconstruction: nmse better than PCA": True,
        "reconstruction: psnr better than PCA": True,
        "reconstruction: ssim better than PCA": False,
        "reconstruction: dice better than PCA": True,
        "generation: rejection rate": False,
        "agreement: Dice on synthetic over real": True,
        "agreement: shuffled pairs, upper end, under paired, lower end": True,
    }


def test_the_table_shows_intervals_and_targets():
    figures = some_figures()
    text = judge.markdown({**figures, "targets": judge.targets(figures)})
    assert "| model | 0.1 [0, 0.2] |" in text
    assert "| generation: rejection rate | 0.3 | below 0.2 | **no** |" in text
    assert "- bundle: tiny 1.0" in text


def test_what_json_cannot_hold_becomes_nothing():
    value = {"a": float("nan"), "b": (1, np.float32(0.1)), "c": True}
    assert judge.plain(value) == {"a": None, "b": [1, 0.1], "c": True}


# -- curves ---------------------------------------------------------------------------------------


def write_run(folder: Path) -> tuple[Path, Path]:
    history, validation = folder / "history.csv", folder / "validation.jsonl"
    history.write_text(
        "step,model/nll,model/kl,discriminator/accuracy\n50,9000,10,\n100,20,30,0.6\n"
    )
    rows = [{"epoch": e, "model/nmse": 0.5 / e, "model/dice": 0.1 * e} for e in (1, 2, 3)]
    validation.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return history, validation


def test_curves_are_the_same_bytes_for_the_same_run(tmp_path):
    history, validation = write_run(tmp_path)
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for file in files[:2]:
        plot_history(history, validation, file)
    plot_history(history, None, files[2])
    first, again, other = (file.read_bytes() for file in files)
    assert first == again != other
    assert first.startswith(b"\x89PNG") and len(first) > 5000


def test_volumes_asked_and_made_are_drawn(tmp_path):
    plot_control([1.0, 10.0, 100.0], [1.1, 9.0, 100.0], tmp_path / "control.png")
    assert (tmp_path / "control.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_that_is_no_history_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("step,colour\n1,blue\n")
    with pytest.raises(DataListError, match="no table of numbers"):
        plot_history(tmp_path / "x.csv", None, tmp_path / "a.png")
    (tmp_path / "x.csv").write_text("step,colour\n1,2\n")
    with pytest.raises(DataListError, match="no history of a training run"):
        plot_history(tmp_path / "x.csv", None, tmp_path / "a.png")
    with pytest.raises(UnreadableFileError, match="cannot be read"):
        plot_history(tmp_path / "none.csv", None, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
