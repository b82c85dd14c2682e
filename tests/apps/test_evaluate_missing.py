"""Claims about reports on cases with which something is wrong: the rest is still written."""

from __future__ import annotations

import json

import pytest
from small_lists import boxes, volumes, write_list

from medvae3d.apps.evaluate import evaluate
from medvae3d.data.volumes import write_volume
from medvae3d.errors import DataListError, SettingError
from medvae3d.geometry import Grid

QUICK = "realism,diversity,masks,privacy"


@pytest.fixture
def lists(tmp_path):
    """Makes data lists by name."""

    def make(name, arrays, masks=None):
        (tmp_path / name).mkdir()
        return write_list(tmp_path / name, arrays, masks)

    return make


def computed(found):
    return {name for name, section in found["sections"].items() if "not_computed" not in section}


def why(found, name):
    return found["sections"][name]["not_computed"]


def values(found, name, table):
    return {
        row: [measure["value"] for measure in columns.values()]
        for row, columns in found["sections"][name]["tables"][table].items()
    }


def test_other_channels_leave_what_masks_say(lists, tmp_path):
    real = lists("real", volumes(6, 0, 2), boxes(6))
    made = lists("made", volumes(5, 1), boxes(5))
    out = tmp_path / "report"
    found = evaluate(real, made, out=out)
    assert computed(found) == {"diversity", "masks", "privacy"}
    for name in ("realism", "agreement"):
        assert "has 2 channels" in why(found, name) and "--channels 1" in why(found, name)
    assert None not in values(found, "masks", "Sizes and shapes")["volume (ml)"]
    assert values(found, "diversity", "attributes of masks")["volume"][0] is not None
    assert values(found, "diversity", "variety within each set")["1 - MS-SSIM"] == [None]
    assert found["sections"]["privacy"]["cases"]["synthetic"]["case_001"]["mask distance"] == 0
    for name in computed(found):
        assert "Computed without images" in found["sections"][name]["warnings"][0]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "has 2 channels" in page and json.loads((out / "report.json").read_text()) == found


def test_other_labels_leave_what_images_say(lists):
    real = lists("real", volumes(6, 0), boxes(6))
    made = lists("made", volumes(5, 1), boxes(5, 3))
    found = evaluate(real, made)
    assert computed(found) == {"realism", "diversity", "privacy"}
    for name in ("masks", "agreement"):
        assert "has the labels 1" in why(found, name) and "--labels" in why(found, name)
    assert values(found, "realism", "radiomics")["precision"][0] is not None
    assert values(found, "diversity", "variety within each set")["1 - MS-SSIM"][0] is not None


@pytest.mark.parametrize(("channels", "value"), [(2, 1), (1, 3)])
def test_a_reference_that_was_asked_for_and_does_not_fit_is_refused(
    lists, tmp_path, channels, value
):
    real, made = lists("real", volumes(6, 0), boxes(6)), lists("made", volumes(5, 1), boxes(5))
    other = lists("other", volumes(3, 2, channels), boxes(3, value))
    with pytest.raises(DataListError, match="--reference .*other.* cannot be compared"):
        evaluate(real, made, other, out=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_other_channels_and_other_labels_leave_a_report_that_says_so(lists, tmp_path):
    real = lists("real", volumes(4, 0, 2), boxes(4))
    made = lists("made", volumes(4, 1), boxes(4, 3))
    found = evaluate(real, made, out=tmp_path / "report")
    assert computed(found) == set()
    assert "channels" in why(found, "privacy") and "labels" in why(found, "privacy")
    assert (tmp_path / "report" / "index.html").is_file()


def test_a_reference_of_training_cases_stops_what_needs_unseen_ones_alone(lists):
    real = lists("real", volumes(6, 0), boxes(6))
    made = lists("made", volumes(5, 1), boxes(5))
    again = lists("again", volumes(2, 0), boxes(2))
    found = evaluate(real, made, again)
    assert computed(found) == {"realism", "diversity", "masks"}
    for name in ("agreement", "privacy"):
        assert "case_000 (same name)" in why(found, name)
        assert "Take them out" in why(found, name)


def test_one_case_of_each_is_too_few_for_most_and_no_error(lists):
    real = lists("real", volumes(1, 0), boxes(1))
    made = lists("made", volumes(1, 1), boxes(1))
    found = evaluate(real, made)
    for name in ("realism", "diversity"):
        assert "1 real and 1 synthetic cases; 2 of each are needed" in why(found, name)
    assert "two of the former are needed" in why(found, "privacy")
    assert "training cases of two volumes are needed" in why(found, "agreement")
    row = found["sections"]["masks"]["tables"]["Sizes and shapes"]["volume (ml)"]["JSD"]
    assert row["value"] is None and "each needs 2" in row["note"]


def test_empty_masks_leave_what_images_say(lists):
    real, made = (
        lists(name, volumes(6, seed), boxes(6, 0)) for seed, name in enumerate(("real", "made"))
    )
    found = evaluate(real, made, labels={"lesion": 1})
    assert "has nothing to learn from" in why(found, "agreement").replace("a segmenter ", "")
    assert values(found, "realism", "radiomics")["precision"][0] is not None
    shares = values(found, "masks", "Empty masks")
    assert shares == {"real": [1.0], "synthetic": [1.0]}
    sphericity = found["sections"]["masks"]["tables"]["Sizes and shapes"]["sphericity"]["JSD"]
    assert sphericity["value"] is None and sphericity["note"]
    row = found["sections"]["privacy"]["tables"]["Self-test"]["mask"]["planted copies flagged"]
    assert row["value"] is None and "no limit" in row["note"]


def test_constant_real_images_leave_what_masks_say(lists):
    flat = volumes(6, 0)
    for array in flat:
        array[:] = 3
    real, made = lists("real", flat, boxes(6)), lists("made", volumes(6, 1), boxes(6))
    found = evaluate(real, made, sections=QUICK)
    assert "is 3 in nearly all voxels of all real cases" in why(found, "realism")
    assert computed(found) == {"diversity", "masks", "privacy"}


def test_constant_synthetic_images_are_judged_as_what_they_are(lists):
    flat = volumes(6, 1)
    for array in flat:
        array[:] = 50
    real, made = lists("real", volumes(6, 0), boxes(6)), lists("made", flat, boxes(6))
    found = evaluate(real, made, sections=QUICK)
    assert computed(found) == set(QUICK.split(","))
    assert values(found, "realism", "radiomics")["precision"][0] == 0.0
    ratio = found["sections"]["diversity"]["tables"]["variety within each set"]["1 - MS-SSIM"]
    assert ratio["ratio"]["value"] == pytest.approx(0, abs=1e-6)


def test_missing_weights_leave_out_their_features_and_no_others(lists):
    real, made = lists("real", volumes(6, 0), boxes(6)), lists("made", volumes(6, 1), boxes(6))
    found = evaluate(
        real, made, sections="realism,diversity", features="radiomics,medicalnet=none.pth"
    )
    realism = found["sections"]["realism"]
    assert values(found, "realism", "radiomics")["precision"][0] is not None
    assert "none.pth not found" in realism["facts"]["medicalnet"]["not computed"]
    assert any("none.pth not found" in text for text in realism["warnings"])
    variety = found["sections"]["diversity"]["tables"]["variety within each set"]
    assert variety["distance, radiomics"]["ratio"]["value"] is not None
    assert "none.pth not found" in variety["distance, medicalnet"]["ratio"]["note"]


def test_missing_weights_of_lpips_leave_the_other_scores_of_pairs(lists):
    real = lists("real", volumes(3, 0), boxes(3))
    made = lists("made", [0.9 * array for array in volumes(3, 0)], boxes(3))
    found = evaluate(real, made, sections="paired", paired=True, lpips="alex.pth")
    images = found["sections"]["paired"]["tables"]["images"]
    assert all("alex.pth not found" in each["note"] for each in images["LPIPS"].values())
    assert all(each["value"] is not None for each in images["SSIM"].values())
    assert found["settings"]["lpips"] == "alex.pth"
    with pytest.raises(SettingError, match="Add --paired"):
        evaluate(real, made, lpips="alex.pth")


def test_pairs_with_other_channels_have_scores_of_masks_and_with_other_labels_of_images(lists):
    real = lists("real", volumes(3, 0), boxes(3))
    two = lists("two", volumes(3, 0, 2), boxes(3))
    found = evaluate(real, two, sections="paired", paired=True)
    tables = found["sections"]["paired"]["tables"]
    assert set(tables) == {"masks"} and tables["masks"]["Dice"]["foreground"]["value"] == 1
    other = lists("other", volumes(3, 0), boxes(3, 2))
    found = evaluate(real, other, sections="paired", paired=True)
    tables = found["sections"]["paired"]["tables"]
    assert set(tables) == {"images"}
    assert tables["images"]["NMSE"]["all that was observed"]["value"] == 0


def test_a_bad_pair_list_that_cannot_be_made_says_why_and_the_report_is_there(lists, tmp_path):
    real = lists("real", volumes(6, 0), boxes(6))
    made = lists("made", volumes(5, 1), boxes(5, 3))
    with pytest.raises(SettingError, match="cannot be filtered by agreement: .* has the labels 1"):
        evaluate(
            real, made, out=tmp_path / "report", kept_list=tmp_path / "kept.json",
            sections="agreement",
        )  # fmt: skip
    assert (tmp_path / "report" / "report.json").is_file()
    assert not (tmp_path / "kept.json").exists()


def test_a_mask_that_lies_elsewhere_is_no_pair_and_is_not_kept(lists, tmp_path):
    real = lists("real", volumes(6, 0), boxes(6))
    made = lists("made", volumes(4, 1), boxes(4))
    write_volume(
        made.parent / "case_002_0001.nii.gz",
        boxes(1)[0],
        Grid.centred((10, 12, 8), (1.0, 1.0, 1.0)),
    )
    found = evaluate(real, made, sections="masks")
    assert found["inputs"]["synthetic"]["cases"] == 3
    assert any("1 of 4 synthetic cases left out" in text for text in found["warnings"])
    assert set(found["sections"]["masks"]["cases"]["synthetic"]) == {
        "case_000", "case_001", "case_003",
    }  # fmt: skip
