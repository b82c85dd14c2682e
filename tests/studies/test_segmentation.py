"""The segmenter of a study: what a batch holds, what is scored, and what an arm is worth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from medvae3d.data.datalists import Case, write_datalist
from medvae3d.data.volumes import write_volume
from medvae3d.errors import DataListError, SettingError
from medvae3d.evaluation.agreement import SegmenterSettings
from medvae3d.geometry import Grid
from medvae3d.studies.case_form import CaseForm
from medvae3d.studies.comparison import compare
from medvae3d.studies.segmentation import Design, SegmentationWork, nested_order, wanted_extra
from medvae3d.studies.segmenter import Mixture, label_scores, score_cases, study_settings, train_on


def settings(steps):
    return replace(study_settings(steps), channels=(4, 8))


def test_a_batch_holds_the_share_of_real_cases_that_is_said(balls):
    real, extra = balls(4), balls(12, seed=1)
    few = Mixture(real, extra, least_real=0.5)
    many = Mixture(real, extra[:2], least_real=0.5)
    assert few.real_share() == 0.5
    assert many.real_share() == pytest.approx(4 / 6)
    for mixture in (few, many):
        drawn = [mixture.draw(2, 0.0, torch.Generator().manual_seed(seed)) for seed in range(600)]
        known = {tuple(image.flatten()[:8].tolist()) for image in real.image[..., 4:12, 8, 8]}
        share = np.mean(
            [
                tuple(image.flatten()[:8].tolist()) in known
                for part in drawn
                for image in part.image[..., 4:12, 8, 8]
            ]
        )
        assert share == pytest.approx(mixture.real_share(), abs=0.04)


def test_extra_cases_end_when_they_are_to_end(balls):
    mixture = Mixture(balls(2), balls(20, seed=1), least_real=0.0, extra_until=0.5)
    assert mixture.real_share(0.49) == pytest.approx(2 / 22)
    assert mixture.real_share(0.5) == 1.0
    assert Mixture(None, balls(2)).real_share() == 0.0


def test_the_same_seed_gives_the_same_scores(balls):
    mixture = Mixture(balls(3), balls(3, seed=1))
    found = [
        score_cases(train_on(mixture, 2, settings(4), seed), balls(2, seed=2), ["ball"], (1, 1, 1))
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


def test_volumes_that_do_not_fit_the_segmenter_are_refused(balls):
    with pytest.raises(SettingError, match="multiples of 8 from 16 on"):
        cut = balls(2)
        train_on(Mixture(replace(cut, image=cut.image[..., :12])), 2, study_settings(1))


def cube(low, high, value=1.0):
    mask = torch.zeros(1, 1, 16, 16, 16)
    mask[..., low:high, low:high, low:high] = value
    return mask


def test_scores_of_cubes_are_those_worked_by_hand():
    # 4^3 voxels found of 6^3, and nothing else.
    found = {
        name: float(v) for name, v in label_scores(cube(5, 9), cube(4, 10), 1, (1, 1, 1)).items()
    }
    assert found["dice"] == pytest.approx(2 * 64 / (64 + 216))
    assert found["jaccard"] == pytest.approx(64 / 216)
    assert found["sensitivity"] == pytest.approx(64 / 216)
    assert found["precision"] == 1.0
    assert 1.0 <= found["asd_mm"] < math.sqrt(3)
    assert found["hd95_mm"] <= math.sqrt(3) + 1e-6


def test_distances_are_in_mm():
    one = label_scores(cube(5, 9), cube(4, 10), 1, (1, 1, 1))
    three = label_scores(cube(5, 9), cube(4, 10), 1, (3, 3, 3))
    for name in ("asd_mm", "hd95_mm"):
        assert float(three[name]) == pytest.approx(3 * float(one[name]))


def test_a_miss_counts_and_two_empty_masks_agree():
    nothing = torch.zeros(1, 1, 16, 16, 16)
    missed = label_scores(nothing, cube(4, 10), 1, (1, 1, 1))
    agreed = label_scores(nothing, nothing, 1, (1, 1, 1))
    diagonal = 16 * math.sqrt(3)
    assert [float(missed[name]) for name in missed] == pytest.approx(
        [0, 0, diagonal, diagonal, 0, 0]
    )
    assert [float(agreed[name]) for name in agreed] == pytest.approx([1, 1, 0, 0, 1, 1])


def test_labels_are_scored_apart():
    made = cube(4, 10, 1.0)
    real = made.clone()
    real[..., 8:10] = torch.where(real[..., 8:10] > 0, 2.0, 0.0)
    found = label_scores(made, real, 2, (1, 1, 1))
    assert found["dice"][0].tolist() == pytest.approx([2 * 144 / (216 + 144), 0])


def test_smaller_numbers_of_cases_are_within_larger_ones():
    order = nested_order(20, seed=3)
    assert sorted(order) == list(range(20))
    assert order == nested_order(20, seed=3) != nested_order(20, seed=4)


def test_extra_cases_are_counted_by_the_real_ones():
    assert [wanted_extra(5, ratio) for ratio in (0.5, 1, 2)] == [2, 5, 10]
    assert wanted_extra(1, 0.1) == 1


def test_the_arm_elastic_differs_from_classical_in_bending_alone():
    labels = {"background": 0, "ball": 1}
    form = CaseForm(({"intensity": None},), ("MR",), labels, (1.0, 1.0, 1.0), (16,) * 3, False)
    work = SegmentationWork(Design(form, (), (), {}, 10))
    plain, bent = work.settings_of("classical"), work.settings_of("elastic")
    pose = bent.augmentation.pose
    assert plain.augmentation.pose.elastic == 0 < pose.elastic
    augmentation = replace(bent.augmentation, pose=replace(pose, elastic=0.0))
    assert replace(bent, augmentation=augmentation) == plain == work.settings_of("copies")


@pytest.mark.slow
def test_informative_pairs_help_and_wrong_labels_harm(balls):
    """Planted arms: real cases are faint, unseen ones bright; extra pairs tell of that, or lie."""
    real, unseen = balls(3, gain=0.35), balls(12, seed=5, gain=0.6)
    alike = balls(12, seed=6, gain=0.6)
    wrong = replace(alike, mask=1 - alike.mask)
    sizes: SegmenterSettings = replace(study_settings(90), channels=(8, 16))
    arms = {}
    for arm, extra in (("classical", None), ("informative", alike), ("wrong", wrong)):
        network = train_on(Mixture(real, extra), 2, sizes)
        scores = score_cases(network, unseen, ["ball"], (1, 1, 1))
        arms[arm] = {case: numbers["dice"] for case, numbers in scores.items()}
    found = compare(arms, "classical")
    assert found["informative"].is_clear and found["informative"].difference > 0
    assert found["wrong"].is_clear and found["wrong"].difference < 0


def test_of_lesions_put_into_a_scan_only_the_new_ones_are_samples(tmp_path):
    grid = Grid.centred((28, 28, 28), (1.0, 1.0, 1.0))
    own, new = np.zeros((28,) * 3, np.uint8), np.zeros((28,) * 3, np.uint8)
    own[6:9, 6:9, 6:9], new[18:21, 18:22, 18:22] = 1, 1
    for name, mask in (("host", own), ("made", own | new)):
        write_volume(tmp_path / f"{name}_image.nii.gz", 10.0 + mask, grid, dtype=np.float32)
        write_volume(tmp_path / f"{name}_mask.nii.gz", mask, grid)
    made = Case((tmp_path / "made_image.nii.gz",), tmp_path / "made_mask.nii.gz", "m", "training")
    write_datalist(tmp_path / "made.json", [made])
    host = {"label": str(tmp_path / "host_mask.nii.gz"), "case": "host"}
    form = CaseForm(
        ({"intensity": {"kind": "window", "low": 0, "high": 20}},), ("MR",),
        {"background": 0, "lesion": 1}, (1.0, 1.0, 1.0), (16, 16, 16), is_insertion=True,
    )  # fmt: skip
    found = form.samples(tmp_path / "made.json", 1, [host], seed=0)
    assert found.mask.sum() == found.region.sum() == new.sum()
    assert bool((found.image[found.mask > 0] > 0.09).all())
    with pytest.raises(DataListError, match="gives 1 synthetic cases; 2 are needed"):
        form.samples(tmp_path / "made.json", 2, [host], seed=0)
