"""Lesions go into a host, and nothing else of it changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from small_insertions import SIDE, insert, network, recipe

import medvae3d
from medvae3d.data.phantom import phantom_case
from medvae3d.data.volumes import read_mask, read_volume, write_volume
from medvae3d.errors import (
    BundleError,
    GridMismatchError,
    LabelError,
    RangeError,
    RejectionError,
    SettingError,
)
from medvae3d.geometry import Grid
from medvae3d.models import zoo
from medvae3d.synthesis.hosts import HostScan, Scan, phantom_host, read_host
from medvae3d.synthesis.insertion import insert_lesions
from medvae3d.synthesis.levels import allowed_error
from medvae3d.synthesis.shapes import Shapes

NEIGHBOURS = np.ones((3, 3, 3), bool)


def saved(
    folder: Path,
    axcodes: str = "RAS",
    dtype: str = "int16",
    shape: tuple[int, int, int] = (44, 52, 42),
    spacing: tuple[float, float, float] = (4.0, 4.0, 4.0),
) -> tuple[Path, Path, Path]:
    """A phantom with a lesion as files: image, label and brain."""
    case = phantom_case(7, shape, spacing, (1, 1))
    turn = nib.orientations.axcodes2ornt(axcodes)
    paths = tuple(folder / f"{axcodes}_{name}.nii.gz" for name in ("FLAIR", "label", "brain"))
    for path, array in zip(paths, (case.image[0], case.label, case.brain), strict=True):
        image = nib.Nifti1Image(array, case.grid.affine).as_reoriented(turn)
        grid, voxels = Grid.from_image(image), np.asarray(image.dataobj)
        if path.name.endswith("FLAIR.nii.gz"):
            steps = {"int16": 0.5, "uint8": 4.0, "float32": None}[dtype]
            write_volume(path, voxels, grid, dtype=dtype, slope=steps, clip=True)
        else:
            write_volume(path, voxels, grid)
    return paths[0], paths[1], paths[2]


def opened(paths: tuple[Path, Path, Path]) -> HostScan:
    return read_host([paths[0]], paths[1], recipe(), brain=paths[2])


def voxels(path: Path) -> np.ndarray:
    """What the file holds, before slope and intercept."""
    return np.asarray(nib.load(path).dataobj.get_unscaled())


HOSTS = [
    {"axcodes": "RAS", "dtype": "int16"},
    {"axcodes": "LAS", "dtype": "uint8"},
    {"axcodes": "LPI", "dtype": "float32"},
    {"axcodes": "SAR", "dtype": "int16", "shape": (58, 64, 28), "spacing": (3.0, 3.25, 6.0)},
    {"axcodes": "RAS", "dtype": "uint8", "shape": (80, 80, 70), "spacing": (2.2, 2.5, 2.4)},
]


@pytest.mark.parametrize("kind", HOSTS, ids=lambda kind: f"{kind['axcodes']}-{kind['dtype']}")
def test_all_but_the_zone_stays_bit_for_bit(tmp_path: Path, kind: dict[str, Any]) -> None:
    paths = saved(tmp_path, **kind)
    host = opened(paths)
    made = insert(host, lesions=(2, 2))
    written = tmp_path / "made.nii.gz"
    made.write_image(0, written)
    assert nib.load(written).header.binaryblock == nib.load(paths[0]).header.binaryblock
    before, after = voxels(paths[0]), voxels(written)
    assert after.dtype == before.dtype == kind["dtype"]
    np.testing.assert_array_equal(after[~made.zone], before[~made.zone])
    assert (after[made.added] != before[made.added]).mean() > 0.8
    # What the sample holds is what the file gives back.
    np.testing.assert_array_equal(read_volume(written).array, made.image[0])
    assert made.zone[made.added].all()
    assert made.zone.sum() < 0.1 * made.zone.size


@pytest.mark.parametrize("kind", HOSTS, ids=lambda kind: f"{kind['axcodes']}-{kind['dtype']}")
def test_volumes_are_met_on_the_voxels_of_the_host(tmp_path: Path, kind: dict[str, Any]) -> None:
    host = opened(saved(tmp_path, **kind))
    made = insert(host, lesions=(3, 3), volume_ml=(2.0, 2.5))
    numbered, found = ndimage.label(made.added, NEIGHBOURS)
    assert found == len(made.lesions) == 3
    sizes = sorted(np.bincount(numbered.ravel())[1:])
    assert sizes == sorted(each["voxels"] for each in made.lesions)
    for each in made.lesions:
        volume = each["volume_ml"]
        assert 2.0 <= volume["asked"] <= 2.5
        voxel_ml = host.grid.voxel_volume_ml
        lesion = numbered == numbered[tuple(_voxel(host, each["place_mm"]))]
        off = abs(volume["reached"] - volume["asked"]) / voxel_ml
        assert off <= allowed_error(lesion, volume["asked"] / voxel_ml)


def _voxel(host: HostScan, point: Any) -> np.ndarray:
    return np.rint(host.grid.to_index(point)).astype(int)


def test_the_label_is_old_or_new(tmp_path: Path) -> None:
    host = opened(saved(tmp_path))
    made = insert(host, lesions=(3, 3))
    assert made.label.dtype == np.uint8
    np.testing.assert_array_equal(made.label > 0, (host.label > 0) | made.added)
    assert not (made.added & (host.label > 0)).any()
    grown = int((made.label > 0).sum()) - int((host.label > 0).sum())
    assert grown == sum(each["voxels"] for each in made.lesions)
    assert made.record["checks"]["label_voxels_added"] == grown


def test_lesions_keep_apart_from_each_other_and_from_old_ones(tmp_path: Path) -> None:
    host = opened(saved(tmp_path))
    made = insert(host, lesions=(8, 8), volume_ml=(0.7, 1.5))
    _, alone = ndimage.label(host.label > 0, NEIGHBOURS)
    _, together = ndimage.label(made.label > 0, NEIGHBOURS)
    assert together == alone + 8


def test_at_most_a_twentieth_leaves_the_brain(phantom: HostScan) -> None:
    made = insert(phantom, lesions=(6, 6))
    numbered, found = ndimage.label(made.added, NEIGHBOURS)
    for number in range(1, found + 1):
        assert phantom.brain[numbered == number].mean() >= 0.95


@pytest.mark.parametrize("axcodes", ["LAS", "PIR", "SLP"])
def test_the_order_of_axes_changes_nothing(tmp_path: Path, axcodes: str) -> None:
    model = network()
    plain = insert(opened(saved(tmp_path)), model)
    turned = insert(opened(saved(tmp_path, axcodes)), model)
    for a, b in ((plain.image[0], turned.image[0]), (plain.label, turned.label)):
        back = nib.as_closest_canonical(nib.Nifti1Image(b, turned.grid.affine))
        np.testing.assert_array_equal(np.asarray(back.dataobj), a)
    for here, there in zip(plain.lesions, turned.lesions, strict=True):
        assert here["place_mm"] == pytest.approx(there["place_mm"], abs=1e-3)


def test_a_sample_depends_on_seed_and_index_alone(phantom: HostScan) -> None:
    model = network()
    first = insert(phantom, model, seed=3, index=5)
    for seed, index in ((3, 4), (4, 5)):
        assert (insert(phantom, model, seed=seed, index=index).label != first.label).any()
    torch.manual_seed(99)
    again = insert(phantom, network(), seed=3, index=5)
    np.testing.assert_array_equal(again.image, first.image)
    np.testing.assert_array_equal(again.label, first.label)
    assert again.record == first.record


def test_the_host_is_left_alone(phantom: HostScan) -> None:
    before = [phantom.image, phantom.label.copy(), phantom.brain.copy()]
    made = insert(phantom)
    for a, b in zip(before, (phantom.image, phantom.label, phantom.brain), strict=True):
        np.testing.assert_array_equal(a, b)
    sample = made.as_sample()
    assert sample.image.shape == (1, *phantom.grid.shape) and sample.image.dtype == torch.float32
    assert sample.label.shape == (1, *phantom.grid.shape) and sample.label.dtype == torch.uint8
    assert sample.grid == phantom.grid


def test_the_number_of_lesions_is_drawn_from_its_range(phantom: HostScan) -> None:
    model = network()
    counts = {len(insert(phantom, model, index=i, lesions=(1, 3)).lesions) for i in range(8)}
    assert counts == {1, 2, 3}


def test_channels_are_blended_each_in_its_own_units() -> None:
    host = phantom_host(recipe("FLAIR", "T1"), 0, 0)
    made = insert_lesions(host, network(2), recipe("FLAIR", "T1"), seed=0)
    assert made.image.shape == (2, *host.grid.shape)
    changed = made.image != host.image
    assert not changed[:, ~made.zone].any()
    assert all(part[made.added].mean() > 0.8 for part in changed)
    assert set(made.lesions[0]["contrast"]) == {"FLAIR", "T1"}


# -- places and masks that are asked for ----------------------------------------------------------


def test_a_lesion_lies_where_it_is_asked_for(tmp_path: Path) -> None:
    point = (-30.0, 6.0, 18.0)
    for kind in (HOSTS[1], HOSTS[3]):
        host = opened(saved(tmp_path, **kind))
        made = insert(host, at_mm=point, allow_overlap=True)
        assert len(made.lesions) == 1
        assert made.lesions[0]["place_mm"] == pytest.approx(point, abs=4.0)


def test_several_places_give_as_many_lesions(phantom: HostScan) -> None:
    points = [(-34, 6, 18), (34, 6, 18), (20, -40, 20)]
    made = insert(phantom, at_mm=points)
    for each, point in zip(made.lesions, points, strict=True):
        assert each["place_mm"] == pytest.approx(point, abs=4.0)


@pytest.mark.parametrize(
    ("point", "says"),
    [((0, 0, 500), "outside of phantom_0_000000, which spans right -86 to 86"),
     ((80, 90, 78), "outside of the brain")],
)  # fmt: skip
def test_a_place_beyond_host_or_brain_is_refused(
    phantom: HostScan, point: tuple[float, ...], says: str
) -> None:
    with pytest.raises(RangeError, match=says):
        insert(phantom, at_mm=point)


def drawn(host: HostScan, folder: Path, centre: tuple[int, int, int], **grid: Any) -> Path:
    mask = np.zeros(host.grid.shape, np.uint8)
    mask[tuple(slice(c - 2, c + 2) for c in centre)] = 1
    mask[centre[0] + 4, centre[1], centre[2]] = 1
    path = folder / "mask.nii.gz"
    write_volume(path, mask, grid.get("grid", host.grid))
    return path


@pytest.mark.parametrize("kind", HOSTS[::3], ids=lambda kind: kind["axcodes"])
def test_a_given_mask_is_filled_as_it_is(tmp_path: Path, kind: dict[str, Any]) -> None:
    host = opened(saved(tmp_path, **kind))
    centre = tuple(n // 2 for n in host.grid.shape)
    path = drawn(host, tmp_path, centre)
    made = insert(host, mask=path, allow_overlap=True)
    np.testing.assert_array_equal(made.added, read_mask(path).array > 0)
    np.testing.assert_array_equal(made.label > 0, (host.label > 0) | made.added)
    assert [each["voxels"] for each in made.lesions] == [64, 1]
    assert (made.image[0] != host.image[0])[made.added].mean() > 0.8
    assert made.record["options"]["mask"]["file"] == "mask.nii.gz"


def test_a_mask_must_fit_its_host(tmp_path: Path) -> None:
    host = opened(saved(tmp_path))
    centre = (22, 26, 21)
    moved = Grid(host.grid.shape, host.grid.affine + np.eye(4)[:, :1] * [0, 0, 0, 1.0])
    with pytest.raises(GridMismatchError, match="mask.nii.gz lies 1.00 mm off"):
        insert(host, mask=drawn(host, tmp_path, centre, grid=moved))
    with pytest.raises(RangeError, match="leaves the brain"):
        insert(host, mask=drawn(host, tmp_path, (3, 3, 3)))
    there = tuple(int(v) for v in np.argwhere(host.label > 0)[0])
    with pytest.raises(LabelError, match="meets lesions of RAS_FLAIR in"):
        insert(host, mask=drawn(host, tmp_path, there))
    write_volume(tmp_path / "empty.nii", 0 * host.label, host.grid)
    with pytest.raises(LabelError, match="empty.nii is empty"):
        insert(host, mask=tmp_path / "empty.nii")


def test_contradictions_are_refused(phantom: HostScan) -> None:
    for options in (
        {"lesions": (0, 2)},
        {"lesions": (3, 2)},
        {"volume_ml": (2.0, 1.0)},
        {"at_mm": (1.0, 2.0)},
        {"at_mm": (-34.0, 6.0, 18.0), "lesions": (2, 3)},
        {"mask": "mask.nii.gz", "volume_ml": (1.0, 2.0)},
        {"mask": "mask.nii.gz", "at_mm": (0.0, 0.0, 0.0)},
    ):
        with pytest.raises(SettingError):
            insert(phantom, **options)


def test_volumes_beyond_training_are_refused_unless_extrapolating(phantom: HostScan) -> None:
    with pytest.raises(RangeError, match="trained on"):
        insert(phantom, volume_ml=(5.0, 6.0))
    made = insert(phantom, volume_ml=(5.0, 5.0), lesions=(1, 1), extrapolate=True)
    assert made.lesions[0]["volume_ml"]["reached"] == pytest.approx(5, abs=1)


def test_networks_that_cannot_insert_are_refused(phantom: HostScan) -> None:
    joint = zoo.vae((SIDE,) * 3, channels=(4, 8), latent_channels=4, components=0)
    with pytest.raises(BundleError, match="two-stage"):
        insert_lesions(phantom, joint, recipe(), seed=0)
    with pytest.raises(BundleError, match="channels"):
        insert_lesions(phantom, network(2), recipe(), seed=0)


def test_no_room_is_told_with_counts(phantom: HostScan) -> None:
    full = HostScan(
        phantom.volumes, phantom.brain.astype(np.uint8), phantom.brain, "full", is_file=False
    )
    says = r"lesion 1 of 2 in full: all 20 .*no place \(20\).*on or beside another lesion \(\d+\)"
    with pytest.raises(RejectionError, match=says):
        insert(full, lesions=(2, 2))
    assert insert(full, lesions=(2, 2), allow_overlap=True).added.any()


def test_refusals_are_those_of_the_lesion_that_finds_no_place(phantom: HostScan) -> None:
    full = HostScan(phantom.volumes, phantom.brain.astype(np.uint8), phantom.brain, "full")
    model, told = network(), recipe()
    scan = Scan.of(full, model, told, allow_overlap=False)
    scan.site.refused["mostly in CSF"] = 7  # of a lesion before this one
    shapes = Shapes(model, told, scan, None, False, 1.0, Counter())
    with pytest.raises(RejectionError, match=r"places refused: [^m]*on or beside") as raised:
        shapes.place(1, 2, None, seed=0, index=0)
    assert "mostly in CSF (7)" not in str(raised.value)


@pytest.mark.gpu
def test_a_gpu_puts_in_what_the_cpu_does(phantom: HostScan) -> None:
    here, there = (insert(phantom, lesions=(3, 3), device=name) for name in ("cpu", "cuda"))
    assert (here.label != there.label).sum() <= 2
    off = np.abs(here.image - there.image)[:, here.label == there.label]
    assert np.quantile(off, 0.999) < 0.2  # two steps of storage


@pytest.mark.slow
@pytest.mark.integration
def test_released_weights_put_bright_lesions_into_a_real_scan(
    shared_data: Path, tmp_path: Path
) -> None:
    bundle = medvae3d.load_bundle("brain_mri_ms_pavae")
    folder = shared_data / "open_ms"
    flair = folder / "images" / "patient07_flair.nii.gz"
    label = folder / "labels" / "patient07_lesion.nii.gz"
    host = read_host([flair], label, bundle.recipe)
    brain = read_mask(folder / "brainmasks" / "patient07_brain.nii.gz").array > 0
    assert 2 * (host.brain & brain).sum() / (host.brain.sum() + brain.sum()) > 0.97
    made = insert_lesions(host, bundle.network, bundle.recipe, seed=1, lesions=(10, 10))
    made.write_image(0, tmp_path / "made.nii.gz")
    before, after = voxels(flair), voxels(tmp_path / "made.nii.gz")
    np.testing.assert_array_equal(after[~made.zone], before[~made.zone])
    assert nib.load(tmp_path / "made.nii.gz").header == nib.load(flair).header
    contrast = [each["contrast"]["FLAIR"] for each in made.lesions]
    assert np.mean([c["after"] - c["before"] for c in contrast]) > 15
    assert sum(made.record["rejected"].values()) <= 2
    seam = made.record["checks"]["seam"]["FLAIR"]
    assert seam["after"] < max(seam["tissue"], 1.05 * seam["before"])
