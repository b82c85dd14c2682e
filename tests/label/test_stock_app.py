"""Every shipped bundle in the bundle application of MONAI Label, over HTTP."""

from __future__ import annotations

import gzip
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from label_server import Server
from label_studies import POSES, write_host
from small_bundles import BUNDLES, INSERTING, JOINT, NAMES, config, run, workflow

pytestmark = [pytest.mark.label, pytest.mark.integration, pytest.mark.timeout(600)]


def volume_of(server: Server, folder: Path, model: str, image: str, **params: Any) -> Any:
    """The answer as an image."""
    path = folder / f"{model}_{image}_{time.monotonic_ns()}.nii.gz"
    path.write_bytes(server.infer(model, image, **params).require().body)
    return nib.load(path)


def by_bundle_run(name: str, server: Server, images: list[str], out: Path, **params: Any) -> Path:
    """What ``python -m monai.bundle run`` writes for the same hosts."""
    hosts = [str(server.studies / f"{image}.nii.gz") for image in images]
    changes = {f"displayable_configs#{key}": value for key, value in params.items()}
    file = BUNDLES / name / "configs" / "inference.json"
    run(workflow(file, "infer", hosts=hosts, output_dir=str(out), **changes))
    return out


@pytest.mark.parametrize("name", NAMES)
def test_mask_in_any_pose_is_that_of_a_bundle_run(name: str, stock: Server, tmp_path: Path) -> None:
    images = [f"{name}_{pose}0" for pose in POSES]
    written = by_bundle_run(name, stock, images, tmp_path / "run", seed=1)
    values = set(config(name, "inference")["labels"].values())
    for image in images:
        host = nib.load(stock.studies / f"{image}.nii.gz")
        mask = volume_of(stock, tmp_path, name, image, seed=1)
        found = np.asarray(mask.dataobj)
        assert found.dtype == np.uint8 and found.shape == host.shape[:3]
        np.testing.assert_allclose(mask.affine, host.affine, atol=1e-4)
        assert set(np.unique(found).tolist()) <= values and found.any()
        wanted = nib.load(written / f"{image}_mask.nii.gz")
        np.testing.assert_array_equal(found, np.asarray(wanted.dataobj))


@pytest.mark.parametrize("name", (JOINT[1], INSERTING[1]))
def test_seed_decides(name: str, stock: Server, tmp_path: Path) -> None:
    image = f"{name}_plain0"
    first, again, other = (
        np.asarray(volume_of(stock, tmp_path, name, image, seed=seed).dataobj) for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_lesion_lies_where_the_crosshair_is(stock: Server, tmp_path: Path) -> None:
    name, image = "brain_mri_ms_pavae", "brain_mri_ms_pavae_flipped0"
    host = nib.load(stock.studies / f"{image}.nii.gz")
    voxel = np.array([22, 32, 26])
    r, a, s = (host.affine @ [*voxel, 1])[:3]
    shown = f"{'R' if r > 0 else 'L'} {abs(r):.2f}, {'A' if a > 0 else 'P'} {abs(a):.2f}, S {s:.2f}"
    at = {f"at_{axis}": int(index) for axis, index in zip("xyz", voxel, strict=True)}
    for wish in ({"at_mm": shown}, at):
        mask = volume_of(stock, tmp_path, name, image, seed=1, **wish)
        centre = np.argwhere(np.asarray(mask.dataobj)).mean(0)
        np.testing.assert_allclose(centre, voxel, atol=2)


def test_volume_that_was_asked_for_is_met(stock: Server, tmp_path: Path) -> None:
    name = "brain_mri_ms_pavae"
    mask = volume_of(stock, tmp_path, name, f"{name}_plain0", lesions=1, volume_ml=0.4)
    assert np.asarray(mask.dataobj).sum() / 1000 == pytest.approx(0.4, rel=0.25)


@pytest.mark.parametrize(("name", "tag"), [(JOINT[0], "synthetic"), (INSERTING[0], "final")])
def test_published_pair_is_what_a_bundle_run_writes(
    name: str, tag: str, stock: Server, tmp_path: Path
) -> None:
    image = f"{name}_permuted0"
    told = stock.infer(name, image, "json", seed=5, publish=True, publish_tag=tag).require().json
    assert told["label_tag"] == tag and told["synthetic_image"] == f"{image}_syn5"
    again = stock.infer(name, image, "json", seed=5, publish=True, publish_tag=tag).require().json
    assert again["synthetic_image"] == told["synthetic_image"], "the same pair, once"
    written = by_bundle_run(name, stock, [image], tmp_path / "run", seed=5)
    made, mask = tmp_path / "made.nii.gz", tmp_path / "mask.nii.gz"
    made.write_bytes(stock.get("/datastore/image", image=told["synthetic_image"]).require().body)
    label = {"label": told["synthetic_label"], "tag": tag}
    mask.write_bytes(stock.get("/datastore/label", **label).require().body)
    for got, kind in ((made, "synthetic"), (mask, "mask")):
        wanted = nib.load(written / f"{image}_{kind}.nii.gz")
        np.testing.assert_array_equal(nib.load(got).get_fdata(), wanted.get_fdata())
        np.testing.assert_allclose(nib.load(got).affine, wanted.affine, atol=1e-4)
    info = stock.get("/datastore/image/info", image=told["synthetic_image"]).json
    assert info["synthetic"] and info["source"] == image and info["model"] == name
    labelled = [entry["image"] for entry in stock.get("/datastore/", output="train").json]
    assert any(told["synthetic_image"] in path for path in labelled) == (tag == "final")
    stock.delete("/datastore/image", id=told["synthetic_image"]).require()


@pytest.mark.parametrize("name", NAMES)
def test_trains_on_two_labelled_cases(name: str, stock: Server, tmp_path: Path) -> None:
    cases = [f"{name}_plain{seed}" for seed in (1, 2)]
    weights = stock.app / "model" / name / "models" / "model.pt"
    before = weights.read_bytes()
    for case in cases:
        mask = stock.studies / "masks" / f"{case}.nii.gz"
        stock.add_label(case, mask).require()
    assert len(stock.get("/datastore/", output="train").json) == 2
    try:
        for split in (0.5, -1):  # with and without a case for validation
            request = {"max_epochs": 1, "val_split": split, "multi_gpu": False}
            answer = stock.post(f"/train/{name}", request, run_sync="true")
            assert answer.status == 200, stock.tail()
    finally:
        for case in cases:
            stock.delete("/datastore/label", id=case, tag="final")
    assert weights.read_bytes() != before
    found = np.asarray(volume_of(stock, tmp_path, name, f"{name}_plain0", seed=2).dataobj)
    assert np.isfinite(found).all()


def test_answer_in_the_form_that_viewers_ask_for(stock: Server, tmp_path: Path) -> None:
    """The clients of 3D Slicer and OHIF send these with every request."""
    name, image = "brain_mri_ms_pavae", "brain_mri_ms_pavae_turned0"
    form = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "viewer"}
    told = stock.infer(name, image, "json", seed=1, **form).require().json
    assert "ignored_parameters" not in told and told["label_names"] == {"lesion": 1}
    path = tmp_path / "mask.nrrd"
    path.write_bytes(stock.infer(name, image, seed=1, **form).require().body)
    mask = sitk.ReadImage(str(path))
    assert mask.GetPixelID() == sitk.sitkUInt8
    wanted = np.asarray(volume_of(stock, tmp_path, name, image, seed=1).dataobj)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T, wanted)
    host = sitk.ReadImage(str(stock.studies / f"{image}.nii.gz"))
    np.testing.assert_allclose(mask.GetOrigin(), host.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(mask.GetDirection(), host.GetDirection(), atol=1e-4)


# -- what a server has to bear ------------------------------------------------------------------

SMALL = "hippocampus_mri_hvae"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"seed": "abc"}, "seed is 'abc'; allowed are whole numbers from 0"),
        ({"sed": 3}, "there is no parameter 'sed'; did you mean 'seed'?"),
        ({"volume_ml": 1e6}, "the weights were trained on"),
        ({"publish": True, "publish_tag": "../../up"}, "publish_tag is '../../up'"),
        ({"temperature": -1}, "temperature is -1"),
    ],
)
def test_wish_that_cannot_be_met_is_answered_in_a_sentence(
    params: dict[str, Any], said: str, stock: Server
) -> None:
    start = stock.log.stat().st_size
    answer = stock.infer(SMALL, f"{SMALL}_plain0", **params).require(400)
    assert said in answer.json["detail"]
    log = stock.log.read_bytes()[start:].decode(errors="replace")
    lines = [line for line in log.splitlines() if "refused:" in line]
    assert len(lines) == 1 and said in lines[0] and "Traceback" not in log
    stock.infer(SMALL, f"{SMALL}_plain0").require()


def test_parameter_of_nobody_is_ignored_and_said_so_in_a_line(stock: Server) -> None:
    start = stock.log.stat().st_size
    told = (
        stock.infer(SMALL, f"{SMALL}_plain0", "json", flavour="mint", scent="pine").require().json
    )
    assert told["ignored_parameters"] == ["flavour", "scent"]
    log = stock.log.read_bytes()[start:].decode(errors="replace")
    lines = [line for line in log.splitlines() if "ignored parameters" in line]
    assert len(lines) == 1 and lines[0].endswith("ignored parameters: flavour, scent")
    assert "WARNING" in lines[0] and "Traceback" not in log
    known = stock.infer(SMALL, f"{SMALL}_plain0", "json", seed=1).require().json
    assert "ignored_parameters" not in known


def test_broken_and_huge_hosts_are_refused(stock: Server) -> None:
    whole = (stock.studies / f"{SMALL}_plain0.nii.gz").read_bytes()
    files = {"cut.nii.gz": whole[: len(whole) // 2], "words.nii.gz": b"no volume at all" * 99}
    for name, content in files.items():
        (stock.studies / name).write_bytes(content)
    header = nib.Nifti1Header()
    header.set_data_shape((512, 512, 512))
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with (stock.studies / "huge.nii").open("wb") as file:  # a hole where the voxels would be
        file.write(header.binaryblock + bytes(4))
        file.truncate(352 + 512**3)
    said = {
        "cut": "cannot be read to its end",
        "words": "is no NIfTI volume",
        "huge": "134 million",
    }
    try:
        end = time.monotonic() + 20
        while stock.get("/datastore/image/info", image="huge").json == {}:
            assert time.monotonic() < end
            time.sleep(0.2)
        for name, reason in said.items():
            answer = stock.infer(SMALL, name).require(400)
            assert reason in answer.json["detail"], answer.json
        assert stock.infer(SMALL, "nobody").status == 400
        stock.infer(SMALL, f"{SMALL}_plain0").require()
    finally:
        for name in ("cut.nii.gz", "words.nii.gz", "huge.nii"):
            (stock.studies / name).unlink()


def test_eight_clients_get_each_their_own(stock: Server) -> None:
    """For ten seconds; `tests/benchmarks/label_soak.py` goes on for minutes."""
    wishes = [(f"{SMALL}_{POSES[n % 4]}0", 10 + n) for n in range(8)]
    alone = [stock.infer(SMALL, image, seed=seed).require().body for image, seed in wishes]
    masks = [voxels_of(body) for body in alone]
    assert len(set(masks)) == 8
    start, faults, done = stock.memory_mb, [], [0] * 8
    end = time.monotonic() + 10

    def client(number: int) -> None:
        image, seed = wishes[number]
        while time.monotonic() < end:
            answer = stock.infer(SMALL, image, seed=seed)
            if answer.status != 200 or voxels_of(answer.body) != masks[number]:
                faults.append((number, answer.status))
            done[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and min(done) > 0
    assert stock.memory_mb - start < 60


def voxels_of(body: bytes) -> bytes:
    """Voxels of a compressed volume: the header of the compression holds a time."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(body)).get_fdata().tobytes()


def test_killed_server_comes_back_with_its_studies(stock_app: Path, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    write_host(studies, SMALL, "plain", 1, lesion=True)
    masks = tmp_path / "masks"
    shutil.move(studies / "masks", masks)
    conf = {"models": SMALL, "zoo_source": "local", "sam2": "false", "skip_trainers": "true"}
    server = Server(stock_app, studies, tmp_path / "server.log", **conf)
    with server:
        image = f"{SMALL}_plain1"
        server.add_label(image, masks / f"{image}.nii.gz").require()
        server.infer(SMALL, image, "json", publish=True).require()
        before = server.get("/datastore/", output="all").json["objects"]
        assert set(before) == {image, f"{image}_syn0"}
        server.kill()
        server.start()
        assert server.get("/datastore/", output="all").json["objects"] == before
        server.infer(SMALL, image).require()
