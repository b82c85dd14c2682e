"""Our application: the loop from labels to drafts over HTTP, its scores, and its data store."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from label_server import Server
from small_bundles import quick_training

from medvae3d.apps.bundle import load_bundle
from medvae3d.apps.label_folder import write_app

pytestmark = [pytest.mark.label, pytest.mark.integration]

GENERATOR = "hippocampus_mri_hvae"
SEGMENTER = f"{GENERATOR}_segmenter"
ROUND = "generative_active_learning"
CASES = 8


def hippocampi(folder: Path, count: int) -> list[Path]:
    """Scans in ``folder``, their masks in ``folder/masks``: real ones, or those of the bundle."""
    import os

    shared = (
        Path(os.environ.get("MEDVAE3D_DATA", Path(__file__).parents[3] / "shared" / "data"))
        / "hippocampus"
    )
    (folder / "masks").mkdir(parents=True)
    scans = []
    if (shared / "datalist.json").is_file():
        entries = json.loads((shared / "datalist.json").read_text())["testing"][:count]
        for entry in entries:
            image = entry["image"] if isinstance(entry["image"], str) else entry["image"][0]
            scan = folder / Path(image).name
            shutil.copyfile(shared / image, scan)
            shutil.copyfile(shared / entry["label"], folder / "masks" / scan.name)
            scans.append(scan)
        return scans
    for number, sample in enumerate(load_bundle(GENERATOR).generate(count, 3)):
        scan = folder / f"phantom_{number}.nii.gz"
        nib.save(nib.Nifti1Image(sample.image.numpy()[0], sample.grid.affine), scan)
        mask = nib.Nifti1Image(sample.label.numpy()[0], sample.grid.affine)
        nib.save(mask, folder / "masks" / scan.name)
        scans.append(scan)
    return scans


@pytest.fixture(scope="module")
def own_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    app = write_app(tmp_path_factory.mktemp("own") / "app", [GENERATOR])
    quick_training(app / "model" / GENERATOR)
    return app


@pytest.fixture(scope="module")
def own(own_app: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("loop")
    scans = hippocampi(folder / "all", CASES)
    (folder / "studies").mkdir()
    for scan in scans:
        shutil.copyfile(scan, folder / "studies" / scan.name)
    # A scan of something else: the darkest and the brightest swapped, and noise.
    odd = nib.load(scans[-1])
    values = odd.get_fdata()
    noise = np.random.default_rng(0).normal(0, 0.3 * values.std(), values.shape)
    nib.save(
        nib.Nifti1Image((values.max() - values + noise).astype(np.float32), odd.affine),
        folder / "studies" / "odd.nii.gz",
    )
    with Server(own_app, folder / "studies", folder / "server.log") as server:
        yield server


def masks_of(server: Server) -> Path:
    return server.studies.parent / "all" / "masks"


def dice(a: Any, b: Any) -> float:
    return float(2 * ((a > 0) & (b > 0)).sum() / max(1, (a > 0).sum() + (b > 0).sum()))


def annotate(server: Server, names: list[str]) -> None:
    """What a person does: saves the right mask as final."""
    for name in names:
        server.add_label(name, masks_of(server) / f"{name}.nii.gz").require()


def test_most_unusual_scan_is_offered_first(own: Server) -> None:
    info = own.get("/info/").require().json
    assert set(info["models"]) == {GENERATOR}, "a segmenter without weights drafts nothing"
    assert {"most_unusual_scan", ROUND} <= set(info["strategies"])
    assert set(info["scoring"]) == {"unusual", "uncertainty"}
    said = own.post("/scoring/unusual", run_sync="true").require().json
    assert said == {"scored": CASES + 1, "failed": {}}
    again = own.post("/scoring/unusual", run_sync="true").require().json
    assert again["scored"] == 0, "by these weights they have been scored"
    offered = own.post("/activelearning/most_unusual_scan").require().json
    assert offered["id"] == "odd"
    other = own.post("/activelearning/most_unusual_scan").require().json
    assert other["id"] != "odd", "whoever asks next gets another"
    own.delete("/datastore/image", id="odd").require()
    skipped = own.post("/scoring/uncertainty", run_sync="true").require().json
    assert "has no weights yet" in skipped["skipped"]
    assert "no model" in own.infer(SEGMENTER, offered["id"]).require(400).json["detail"]


@pytest.mark.timeout(900)
def test_two_rounds_lead_from_labels_to_drafts(own: Server, tmp_path: Path) -> None:
    names = sorted(path.name.removesuffix(".nii.gz") for path in own.studies.glob("*.nii.gz"))
    wish = {"candidates": 5, "keep": 2, "segmenter_epochs": 6, "epoch_length": 12, "seed": 1}
    wish["generator_epochs"] = 1
    refused = own.post(f"/train/{ROUND}", wish, run_sync="true").require(400)
    assert "a round needs 3" in refused.json["detail"]
    own.add_label(names[0], own.studies / f"{names[0]}.nii.gz").require()
    wrong = own.post(f"/train/{SEGMENTER}", {"max_epochs": 1}, run_sync="true").require(400)
    assert "label" in wrong.json["detail"], "a scan was saved as its own mask"
    annotate(own, names[:4])
    first = own.post(f"/train/{ROUND}", wish, run_sync="true")
    assert first.status == 200, own.tail()
    report = first.json
    assert (len(report["training"]), len(report["validation"])) == (3, 1)
    assert report["segmenter"]["real"] == 3 and report["segmenter"]["accepted"]
    assert report["kept"] and report["segmenter"]["synthetic"] == len(report["kept"]) <= 2
    trained = report["generator"]
    assert trained["trained"]
    is_fit = trained["after"] <= trained["before"] and "near_copies" not in trained
    assert trained["accepted"] == is_fit

    # What was kept is there with its mask, is no scan to annotate, and says what it is.
    made = report["kept"][0]
    info = own.get("/datastore/image/info", image=made).require().json
    assert info["synthetic"] and info["model"] == GENERATOR and info["round"] == 1
    mask = tmp_path / "mask.nii.gz"
    mask.write_bytes(own.get("/datastore/label", label=made, tag="synthetic").require().body)
    assert set(np.unique(nib.load(mask).get_fdata())) == {0, 1, 2}
    assert all(made not in each["image"] for each in own.get("/datastore/", output="train").json)

    # The segmenter drafts the next scan, the one that it is most uncertain of.
    offered = own.post(f"/activelearning/{ROUND}").require().json
    assert offered["id"] in names[4:] and offered["score"]["name"] == "uncertainty"
    annotate(own, [offered["id"]])
    second = own.post(f"/train/{ROUND}", wish, run_sync="true")
    assert second.status == 200, own.tail()
    after = second.json
    assert after["round"] == 2 and after["segmenter"]["dice_before"] is not None
    assert set(report["validation"]) <= set(after["validation"]), "held out once, held out always"
    assert after["segmenter"]["synthetic"] <= after["segmenter"]["real"]
    if not after["segmenter"]["accepted"]:
        assert not after["kept"]
        assert "was taken back" in own.post(f"/train/{ROUND}", wish, run_sync="true").json["detail"]

    left = [name for name in names if name not in {*names[:4], offered["id"]}]
    scores = []
    for name in left:
        draft = tmp_path / f"{name}.nii.gz"
        draft.write_bytes(own.infer(SEGMENTER, name).require().body)
        found, truth = nib.load(draft), nib.load(masks_of(own) / f"{name}.nii.gz")
        np.testing.assert_allclose(found.affine, truth.affine, atol=1e-3)
        scores.append(dice(found.get_fdata(), truth.get_fdata()))
    assert np.mean(scores) > 0.5, scores
    assert (own.app / "rounds" / GENERATOR / "round_2.json").is_file()


def test_training_in_the_background_ends_and_shows_its_state(own: Server) -> None:
    wish = {"max_epochs": 1, "epoch_length": 2}
    own.post(f"/train/{SEGMENTER}", wish).require()
    end = time.monotonic() + 150
    while (state := own.get("/train/").require().json)["status"] not in ("DONE", "ERROR"):
        assert time.monotonic() < end
        time.sleep(1)
    assert state["status"] == "DONE", state["details"]


def test_a_scan_is_offered_at_random_however_fast_it_is_asked_for() -> None:
    from medvae3d.apps.label_app.scoring import AtRandom

    class Store:
        """One scan, which was offered in this very second."""

        def get_unlabeled_images(self, *unused: Any) -> list[str]:
            return ["scan"]

        def get_image_info(self, name: str) -> dict[str, Any]:
            return {"strategy": {"random": {"ts": int(time.time()) + 1}}}

    assert AtRandom()({"strategy": "random"}, Store())["id"] == "scan"


def test_store_survives_a_torn_list(own_app: Path, tmp_path: Path) -> None:
    scans = hippocampi(tmp_path / "all", 2)
    studies = tmp_path / "studies"
    studies.mkdir()
    for scan in scans:
        shutil.copyfile(scan, studies / scan.name)
    name = scans[0].name.removesuffix(".nii.gz")
    server = Server(own_app, studies, tmp_path / "server.log", models=GENERATOR)
    with server:
        server.add_label(name, tmp_path / "all" / "masks" / scans[0].name).require()
        made = server.infer(GENERATOR, name, "json", publish=True).require().json
        server.kill()
        listed = studies / "datastore_v2.json"
        listed.write_bytes(listed.read_bytes()[:100])
        (studies / ".half.nii.gz.99.part").write_bytes(b"half")
        server.start()
        found = server.get("/datastore/", output="all").json["objects"]
        assert set(found) == {
            *(s.name.removesuffix(".nii.gz") for s in scans),
            made["synthetic_image"],
        }
        assert "final" in found[name]["labels"]
        assert "synthetic" in found[made["synthetic_image"]]["labels"]
        assert not list(studies.glob(".*.part")) and (studies / "datastore_v2.broken").is_file()
        offered = {server.post("/activelearning/first").json.get("id") for _ in range(2)}
        assert made["synthetic_image"] not in offered, "its tag says what it is"
