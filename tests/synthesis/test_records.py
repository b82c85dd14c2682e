"""Claims about records and the folder of samples that is made from them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny_bundles as tiny
from monai.data import load_decathlon_datalist

from medvae3d import __version__
from medvae3d.data.manifests import read_datalist
from medvae3d.errors import BundleError, OutputError, SettingError
from medvae3d.synthesis.generator import Request, generate
from medvae3d.synthesis.recipe import Recipe
from medvae3d.synthesis.records import Provenance, plain, rejections, to_bytes
from medvae3d.synthesis.writing import write_cases

PROVENANCE = Provenance(
    "balls", "1.2.0", "ab12", {"weights": "Apache-2.0", "data": ["balls: CC0"]}, ("someone2020",)
)


def write(out, count, seed=3, start=0, network=tiny.JOINT, provenance=PROVENANCE, **options):
    recipe, request = tiny.recipe(network), Request(count, seed, start)
    made = generate(tiny.taught(network), recipe, request)
    run = provenance.run(
        {"kind": recipe.synthesis.kind, "seed": seed, "options": request.options(recipe)}
    )
    samples = (
        type(sample)(sample.image, sample.label, sample.grid, provenance.complete(sample.record))
        for sample in made
    )
    write_cases(samples, out, recipe, run, **{"preview": False, **options})
    return Path(out)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cases") / "out", 3, preview=True)


def test_the_folder_has_the_names_that_are_promised(folder):
    names = set(files(folder))
    assert names == {"dataset.json", "preview.png"} | {
        name
        for index in range(3)
        for name in (
            f"imagesTr/balls_s3_{index:06d}_0000.nii.gz",
            f"imagesTr/balls_s3_{index:06d}_0001.nii.gz",
            f"labelsTr/balls_s3_{index:06d}.nii.gz",
            f"records/balls_s3_{index:06d}.json",
        )
    }


def test_the_record_holds_what_publishing_needs(folder):
    record = json.loads((folder / "records/balls_s3_000001.json").read_text())
    assert record["synthetic"] is True
    assert record["medvae3d"] == __version__
    assert record["bundle"] == "balls 1.2.0" and record["weights_sha256"] == "ab12"
    assert record["seed"] == 3 and record["index"] == 1
    assert record["grid"] == {
        "shape": [16, 16, 16],
        "spacing_mm": [4.0, 4.0, 4.0],
        "axcodes": "RAS",
    }
    assert record["licence"] == {"weights": "Apache-2.0", "data": ["balls: CC0"]}
    assert record["cite"] == ["someone2020"]
    assert record["labels"] == {"background": 0, "tumour": 1}
    assert [each["unit"] for each in record["channels"]] == ["SUV", "HU"]
    assert set(record["condition"]) == {"asked", "reached"}
    assert record["checks"]["components"] == 1


def test_the_volumes_are_stored_as_the_recipe_says(folder):
    for channel, slope in enumerate((0.005, 1.0)):
        image = nib.load(folder / f"imagesTr/balls_s3_000000_{channel:04d}.nii.gz")
        assert image.get_data_dtype() == np.int16
        assert image.dataobj.slope == pytest.approx(slope)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    label = nib.load(folder / "labelsTr/balls_s3_000000.nii.gz")
    assert label.get_data_dtype() == np.uint8
    assert set(np.unique(label.dataobj)) == {0, 1}


def test_what_is_stored_is_what_was_made_within_half_a_step(folder):
    (sample,) = generate(tiny.taught(), tiny.recipe(), Request(1, 3))
    for channel, step in enumerate((0.005, 1.0)):
        stored = nib.load(folder / f"imagesTr/balls_s3_000000_{channel:04d}.nii.gz").get_fdata()
        assert np.abs(stored - sample.image[channel].numpy()).max() <= 0.501 * step


def test_dataset_json_is_what_nnunet_asks_for(folder):
    dataset = json.loads((folder / "dataset.json").read_text())
    assert dataset["channel_names"] == {"0": "PET", "1": "CT"}
    assert dataset["labels"] == {"background": 0, "tumour": 1}
    assert dataset["numTraining"] == 3 and dataset["file_ending"] == ".nii.gz"
    ends = len("_0000.nii.gz")
    images = {path.name[:-ends] for path in (folder / "imagesTr").iterdir()}
    labels = {path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir()}
    assert images == labels and len(labels) == dataset["numTraining"]
    assert "dataset" not in dataset  # nnU-Net would take it for a list of its own


def test_dataset_json_is_a_monai_data_list(folder):
    cases = load_decathlon_datalist(str(folder / "dataset.json"), True, "training")
    assert len(cases) == 3
    for case in cases:
        assert len(case["image"]) == 2
        assert all(Path(path).is_file() for path in (*case["image"], case["label"]))


def test_our_own_reader_takes_the_list_and_tells_the_cases_apart(folder):
    cases = read_datalist(folder / "dataset.json").split("training")
    assert [case.subject for case in cases] == [f"balls_s3_{index:06d}" for index in range(3)]


def test_the_rejection_rate_is_counted_over_all_draws():
    records = [{"rejected": {"empty": 2}}, {"rejected": {}}, {"rejected": {"empty": 1, "x": 1}}]
    found = rejections(records)
    assert found["draws"] == 7 and found["rejected"] == {"empty": 3, "x": 1}
    assert found["rejection_rate"] == pytest.approx(4 / 7, rel=1e-5)


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    assert files(write(tmp_path / "again", 3, preview=True, threads=1)) == files(folder)


def test_ranges_put_together_are_one_run(folder, tmp_path):
    out = write(tmp_path / "out", 1, start=2, preview=True)
    write(out, 2, start=0, preview=True)
    assert files(out) == files(folder)


def test_a_range_may_be_made_twice(folder, tmp_path):
    out = write(tmp_path / "out", 3, preview=True)
    write(out, 2, start=1, preview=True)
    assert files(out) == files(folder)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 4}, "seed 3, this run 4"),
        ({"provenance": Provenance("balls", "1.2.0", "cd34")}, 'weights_sha256 "ab12"'),
        ({"provenance": Provenance("cubes", "1.2.0", "ab12")}, "bundle"),
        ({"network": tiny.TWO_STAGE}, "kind"),
    ],
)
def test_the_folder_of_another_run_is_refused(changed, said, tmp_path):
    out = write(tmp_path / "out", 1)
    before = files(out)
    with pytest.raises(OutputError, match=said):
        write(out, 1, **changed)
    assert files(out) == before


@pytest.mark.parametrize(
    "name", ["imagesTr/real_0000.nii.gz", "labelsTr/real.nii.gz", "dataset.json"]
)
def test_files_of_others_are_left_alone(name, tmp_path):
    foreign = tmp_path / "out" / name
    foreign.parent.mkdir(parents=True)
    foreign.write_text("precious")
    with pytest.raises(OutputError, match=r"another run.*empty folder"):
        write(tmp_path / "out", 1)
    assert files(tmp_path / "out") == {name: b"precious"}


@pytest.mark.parametrize("content", ["{", "[]", '{"case": "other"}'])
def test_a_broken_record_is_named(content, tmp_path):
    record = tmp_path / "records" / "balls_s3_000000.json"
    record.parent.mkdir()
    record.write_text(content)
    with pytest.raises(OutputError, match=r"balls_s3_000000\.json is no record"):
        write(tmp_path, 1)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        write(tmp_path / "out", 1)


def test_a_run_that_ends_early_leaves_whole_cases(tmp_path):
    recipe, request = tiny.recipe(), Request(4, 3)
    run = PROVENANCE.run({"kind": "joint", "seed": 3, "options": request.options(recipe)})

    def broken():
        for sample in generate(tiny.taught(), recipe, request):
            if sample.record["index"] == 2:
                raise SettingError("stop")
            record = PROVENANCE.complete(sample.record)
            yield type(sample)(sample.image, sample.label, sample.grid, record)

    with pytest.raises(SettingError, match="stop"):
        write_cases(broken(), tmp_path / "out", recipe, run)
    assert json.loads((tmp_path / "out/dataset.json").read_text())["numTraining"] == 2
    assert len(files(tmp_path / "out")) == 2 * 4 + 1
    write(tmp_path / "out", 2, start=2)
    whole = write(tmp_path / "whole", 4)
    assert files(tmp_path / "out") == files(whole)


def test_a_run_that_makes_nothing_leaves_nothing(tmp_path):
    run = PROVENANCE.run({"kind": "joint", "seed": 3, "options": {}})

    def nothing():
        raise SettingError("stop")
        yield

    with pytest.raises(SettingError, match="stop"):
        write_cases(nothing(), tmp_path / "out", tiny.recipe(), run)
    assert not (tmp_path / "out").exists()


def test_records_are_the_same_json_wherever_numbers_come_from():
    value = {"a": np.float32(0.1), "b": (np.int64(3), 1.0), "c": float("nan"), "d": Path("x/y")}
    assert plain(value) == {"a": 0.1, "b": [3, 1.0], "c": None, "d": "y"}
    assert to_bytes(plain(value)) == to_bytes(json.loads(to_bytes(plain(value))))


# -- recipes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["channels", "labels", "spacing", "spatial_shape"])
def test_what_a_configuration_lacks_is_named(key):
    config = tiny.config()
    del config[key]
    with pytest.raises(BundleError, match=f"inference.json lacks {key}"):
        Recipe.from_config(config, source="inference.json")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"spacing": [1, 1]}, "list of 3 numbers"),
        ({"spacing": [1, 0, 1]}, "above 0"),
        ({"labels": {"background": 0, "tumour": 2}}, "0 .background., 1, 2 and so on"),
        ({"labels": {"background": 0}}, "labels are"),
        ({"channels": []}, "at least one channel"),
        ({"channels": [{"name": "CT"}]}, r"lacks \['intensity'\]"),
        ({"channels": [{**tiny.CHANNELS[0], "slpoe": 1}]}, "slpoe"),
        ({"channels": [{**tiny.CHANNELS[0], "dtype": "text"}]}, "dtype is 'text'"),
        ({"channels": [{**tiny.CHANNELS[0], "slope": -1}]}, "slope is -1"),
        ({"synthesis": {"kind": "magic"}}, "kind is 'magic'; allowed are joint"),
        ({"synthesis": {"temperature": -1}}, "temperature"),
        ({"synthesis": {"volume_range_percent": [99, 1]}}, "percentiles"),
        ({"synthesis": {"max_attempts": 0}}, "max_attempts"),
    ],
)
def test_what_cannot_be_used_is_named(changed, said):
    with pytest.raises(SettingError, match=said):
        Recipe.from_config({**tiny.config(), **changed}, source="inference.json")


def test_percentiles_come_back_at_those_of_the_training_set():
    import torch

    from medvae3d.models.statistics import TrainingStatistics

    mr = {"name": "MR", "intensity": {"kind": "percentile"}, "slope": None, "dtype": "int16"}
    recipe = Recipe.from_config({**tiny.config(), "channels": [mr]})
    statistics = TrainingStatistics()
    statistics.image_low.fill_(20)
    statistics.image_high.fill_(120)
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0]).reshape(1, 1, 4, 1, 1)
    assert recipe.to_native(values, statistics).flatten().tolist() == [20, 20, 70, 120]


def test_percentiles_without_native_values_are_refused():
    """Stored as int16, an image from 0 to 1 would be black."""
    mr = {"name": "MR", "intensity": {"kind": "percentile"}, "dtype": "int16"}
    network = {**tiny.JOINT, "image_channels": 1}
    unfitted = Recipe.from_config({**tiny.config(), "channels": [mr]})
    with pytest.raises(BundleError, match=r"MR is in percentiles.*reference_low"):
        generate(tiny.built(network), unfitted, Request(1))
    mr["intensity"] |= {"reference_low": 20.0, "reference_high": 120.0}
    referred = Recipe.from_config({**tiny.config(), "channels": [mr]})
    referred.require_references(tiny.built(network).statistics)
