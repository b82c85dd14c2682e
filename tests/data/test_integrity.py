import csv
import json
import zlib

import nibabel as nib
import numpy as np
import pytest

from medvae3d.data.integrity import check
from medvae3d.data.manifests import read_datalist
from medvae3d.data.volumes import write_volume
from medvae3d.geometry import Grid

GRID = Grid.centred((12, 14, 10), (1.0, 1.0, 2.0))


def noise(seed=0):
    return np.random.default_rng(seed).normal(size=GRID.shape).astype(np.float32)


def two_lesions(at=2):
    mask = np.zeros(GRID.shape, np.uint8)
    mask[at : at + 2, 2:4, 2:4] = 1
    mask[8, 8, 8] = 1
    mask[9, 9, 9] = 1  # touches by a corner: one lesion of two voxels
    return mask


class Set:
    """A data set in a folder, built case by case."""

    def __init__(self, root):
        self.root = root
        self.content = {"training": [], "validation": [], "testing": []}

    def add(self, name, images=None, mask=None, split="training", grids=None, **keys):
        images = [noise(zlib.crc32(name.encode()))] if images is None else images
        grids = grids or [GRID] * (len(images) + 1)
        item = {"image": [f"{name}_{c}.nii.gz" for c in ("flair", "t1")[: len(images)]], **keys}
        for file, image, grid in zip(item["image"], images, grids, strict=False):
            write_volume(self.root / file, image, grid)
        if mask is not None:
            item["label"] = f"{name}_lesion.nii.gz"
            write_volume(self.root / item["label"], mask, grids[-1])
        self.content[split].append(item)
        return self

    def check(self, **options):
        (self.root / "datalist.json").write_text(json.dumps(self.content))
        return check(read_datalist(self.root / "datalist.json", check_files=False), **options)


@pytest.fixture
def data(tmp_path):
    return Set(tmp_path)


def the_finding(report, kind):
    assert [finding.kind for finding in report.findings] == [kind]
    assert report.exit_code == 1
    return report.findings[0]


def test_a_clean_set_has_no_findings(phantom_list):
    report = check(read_datalist(phantom_list))
    assert (report.exit_code, report.findings, report.unreadable) == (0, (), ())
    assert [report.summary["splits"][s]["cases"] for s in ("training", "validation")] == [6, 2]
    assert all(case.mismatch_mm < 1e-4 for case in report.cases)


def test_lesions_are_counted_by_26_neighbours_and_measured_in_ml(data):
    report = data.add("a_1", mask=two_lesions()).check()
    (case,) = report.cases
    assert case.lesions_ml == pytest.approx((8 * 0.002, 2 * 0.002))
    assert case.labels == pytest.approx({1: 10 * 0.002})
    assert (case.shape, case.axcodes) == (GRID.shape, "RAS")
    assert case.spacing_mm == pytest.approx((1, 1, 2))


def test_volumes_agree_with_scipy_on_real_masks(shared_data):
    datalist = read_datalist(shared_data / "sts_petct" / "datalist.json")
    with (datalist.root / "cases.csv").open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    report = check(type(datalist)(datalist.cases[:4], datalist.root))
    for case in report.cases:
        row = rows[f"{case.case}_gtv"]
        assert sum(case.labels.values()) == pytest.approx(float(row["label_ml"]), rel=1e-3)
        assert case.lesion_count == int(row["components"])


def test_a_label_on_another_grid_is_a_finding_with_the_distance(data):
    shifted = GRID.crop((0, 3, 0), GRID.shape)
    report = data.add("a_1", mask=two_lesions(), grids=[GRID, shifted]).check()
    assert "3.00 mm off" in the_finding(report, "grid").text
    assert report.cases[0].mismatch_mm == pytest.approx(3)


def test_a_label_of_another_shape_is_a_finding(data):
    other = Grid.centred((12, 14, 11), (1.0, 1.0, 2.0))
    report = data.add("a_1", mask=np.ones(other.shape, np.uint8), grids=[GRID, other]).check()
    assert "(12, 14, 11)" in the_finding(report, "grid").text
    assert report.cases[0].mismatch_mm is None


def test_channels_on_different_grids_are_a_finding(data):
    shifted = GRID.crop((1, 0, 0), GRID.shape)
    report = data.add("a_1", [noise(1), noise(2)], grids=[GRID, shifted]).check()
    assert "channel a_1_t1.nii.gz lies 1.00 mm off" in the_finding(report, "grid").text


def test_nan_is_a_finding_with_its_number(data):
    image = noise()
    image[0, 0, :3] = np.nan
    assert "3 NaN" in the_finding(data.add("a_1", [image]).check(), "nan").text


def test_a_constant_channel_is_a_finding_and_named(data):
    report = data.add("a_1", [noise(), np.full(GRID.shape, 7, np.float32)]).check()
    assert "a_1_t1.nii.gz is 7 in every voxel" in the_finding(report, "constant").text


def test_labels_between_whole_numbers_are_a_finding(data):
    mask = two_lesions().astype(np.float32) * 0.5
    assert "0.5" in the_finding(data.add("a_1", mask=mask).check(), "label").text


def test_labels_that_the_list_does_not_declare_are_a_finding(data):
    data.content["labels"] = {"0": "background", "2": "tumour"}
    report = data.add("a_1", mask=two_lesions()).check()
    assert "allowed are the values [0, 2]" in the_finding(report, "label").text


@pytest.mark.parametrize("labels", [{"background": 0, "lesion": 1}, {"0": "b", "1": "l"}, {}])
def test_labels_may_be_declared_in_either_direction(data, labels):
    data.content["labels"] = labels
    assert data.add("a_1", mask=two_lesions()).check().exit_code == 0


def test_an_empty_mask_is_a_finding(data):
    report = data.add("a_1", mask=np.zeros(GRID.shape, np.uint8)).check()
    assert "empty" in the_finding(report, "label").text


def test_identical_voxels_are_found_whatever_the_file_type(data, tmp_path):
    image = np.arange(np.prod(GRID.shape)).reshape(GRID.shape)
    data.add("a_1", [image.astype(np.float32)]).add("b_2", [image.astype(np.int16)])
    finding = the_finding(data.check(), "duplicate")
    assert "a_1_flair.nii.gz" in finding.text
    assert "b_2_flair.nii.gz" in finding.text


def test_equal_voxels_on_another_grid_are_no_duplicates(data):
    image = noise()
    other = GRID.crop((5, 0, 0), GRID.shape)
    assert data.add("a_1", [image]).add("b_2", [image], grids=[other]).check().exit_code == 0


def test_a_subject_in_two_splits_is_a_finding(data):
    data.add("a_1", subject="p").add("a_2", subject="p", split="testing")
    assert "subject p is in training and in testing" in the_finding(data.check(), "split").text


def test_another_number_of_channels_is_a_finding(data):
    for name in ("a_1", "b_2"):
        data.add(name, [noise(ord(name[0])), noise(ord(name[0]) + 100)])
    report = data.add("c_3").check()
    assert "c_3 has 1 channels, most cases have 2" in the_finding(report, "channels").text


def test_four_channels_in_one_file_are_channels(data, tmp_path):
    array = np.random.default_rng(0).normal(size=(8, 8, 8, 4)).astype(np.float32)
    array[..., 2] = 1
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a_1.nii.gz")
    data.content["training"] = [{"image": "a_1.nii.gz"}]
    report = data.check()
    assert len(report.cases[0].channels) == 4
    assert "channel 2 is 1 in every voxel" in the_finding(report, "constant").text


def test_unreadable_files_are_told_apart_and_do_not_stop_the_pass(data, tmp_path):
    data.add("a_1", mask=two_lesions()).add("b_2").add("c_3", mask=two_lesions(4))
    raw = (tmp_path / "b_2_flair.nii.gz").read_bytes()
    (tmp_path / "b_2_flair.nii.gz").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "c_3_lesion.nii.gz").unlink()
    report = data.check()
    assert report.exit_code == 2
    assert [finding.case for finding in report.unreadable] == ["b_2", "c_3"]
    assert report.summary["unreadable"] == 2
    assert report.cases[0].lesion_count == 2


def test_a_flat_image_is_a_finding_of_the_grid(data, tmp_path):
    nib.save(nib.Nifti1Image(np.ones((8, 8), np.float32), np.eye(4)), tmp_path / "a_1.nii.gz")
    data.content["training"] = [{"image": "a_1.nii.gz"}]
    assert "(8, 8)" in the_finding(data.check(), "grid").text


def test_the_report_is_json_with_everything_in_it(data):
    report = data.add("a_1", mask=two_lesions()).add("b_2", [noise() * 0]).check()
    content = json.loads(report.to_json())
    assert content["exit_code"] == 1
    assert content["cases"][0]["lesion_count"] == 2
    assert content["cases"][0]["affine"] == GRID.affine.tolist()
    assert content["findings"][0]["kind"] == "constant"
    training = content["summary"]["splits"]["training"]
    assert training["label_values"] == [1]
    assert training["volume_ml"]["median"] == pytest.approx(0.02)
    assert training["axcodes"] == {"RAS": 2}
    assert content["summary"]["findings"] == {"constant": 1}


def test_progress_is_reported_before_each_case(data):
    seen = []
    data.add("a_1").add("b_2").check(progress=lambda *step: seen.append(step))
    assert seen == [(0, 2, "a_1"), (1, 2, "b_2")]
