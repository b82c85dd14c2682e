import hashlib
import time

import numpy as np
import pytest
from scipy import ndimage

from medvae3d.data.manifests import SPLITS, read_datalist
from medvae3d.data.phantom import phantom_case, write_phantoms
from medvae3d.data.volumes import read_mask, read_volume
from medvae3d.errors import OutputError, SettingError

SMALL = {"shape": (24, 28, 24), "spacing": (7.0, 7.0, 7.0)}


@pytest.fixture(scope="module")
def case():
    return phantom_case(3, lesions=(5, 5))


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    first = write_phantoms(tmp_path / "a", 2, 5, **SMALL).parent
    again = write_phantoms(tmp_path / "b", 2, 5, **SMALL).parent
    other = write_phantoms(tmp_path / "c", 2, 6, **SMALL).parent
    assert digests(first) == digests(again)
    assert digests(first).keys() == digests(other).keys()
    same = [name for name, digest in digests(first).items() if digests(other)[name] == digest]
    assert not [name for name in same if not name.startswith("brains")]


def test_a_case_depends_on_seed_and_index_alone(tmp_path):
    few = write_phantoms(tmp_path / "a", 1, 5, **SMALL).parent
    many = write_phantoms(tmp_path / "b", 3, 5, **SMALL).parent
    images = {name: digest for name, digest in digests(few).items() if name.endswith(".nii.gz")}
    assert images.items() <= digests(many).items()


@pytest.mark.parametrize("seed", range(6))
def test_lesions_are_as_many_as_asked_for_and_lie_in_the_brain(seed):
    case = phantom_case(seed, lesions=(2, 4))
    _, count = ndimage.label(case.label, np.ones((3, 3, 3)))
    assert 2 <= count <= 4
    assert set(np.unique(case.label)) == {0, 1}
    assert (case.brain[case.label == 1] == 1).all()


def test_a_host_without_lesions_has_none():
    assert phantom_case(0, lesions=(0, 0)).label.sum() == 0


def test_the_mask_is_what_one_sees(case):
    """Half the contrast is reached at the border of the mask; noise and blur leave a third."""
    inside = ndimage.binary_erosion(case.label)
    ring = ndimage.binary_dilation(case.label, iterations=4) & (case.brain == 1)
    ring &= ~ndimage.binary_dilation(case.label, iterations=2)
    border = ndimage.binary_dilation(case.label) & (case.label == 0) & (case.brain == 1)
    flair, t1 = case.image
    assert np.median(flair[inside]) > 1.4 * np.median(flair[ring])
    assert np.median(t1[inside]) < 0.85 * np.median(t1[ring])
    middle = (np.median(flair[inside]) + np.median(flair[ring])) / 2
    assert (flair[case.label == 1] > middle).mean() > 0.65
    assert (flair[border] < middle).mean() > 0.65


def test_tissues_have_the_contrast_of_their_sequence():
    """The T1 histogram of a brain has CSF below grey below white; FLAIR turns the last two."""
    case = phantom_case(1, shape=(96, 112, 96), spacing=(1.9, 1.9, 1.9), lesions=(0, 0))
    flair, t1 = (channel[case.brain == 1] for channel in case.image)
    csf, grey, white = np.quantile(t1, (0.03, 0.5, 0.9))
    assert csf < 0.6 * grey < grey < 0.85 * white
    is_white = t1 > (grey + white) / 2
    is_grey = (t1 > 0.85 * grey) & (t1 < 1.1 * grey)
    assert np.median(flair[is_grey]) > 1.1 * np.median(flair[is_white])
    assert np.median(flair[t1 < csf]) < 0.6 * np.median(flair[is_white])


def test_a_brain_has_the_size_of_a_brain():
    case = phantom_case(2, shape=(91, 109, 91), spacing=(2.0, 2.0, 2.0))
    assert 1100 < case.brain.sum() * case.grid.voxel_volume_ml < 1900


def test_air_is_exactly_zero_and_the_head_is_not(case):
    assert (case.image >= 0).all()
    assert 0.3 < (case.image[0] == 0).mean() < 0.8
    assert (case.image[0][case.brain == 1] > 0).all()


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((16, 16, 16), (1.0, 1.0, 1.0)),
        ((32, 40, 8), (5.0, 5.0, 20.0)),
        ((20, 64, 64), (9.0, 3.0, 3.0)),
    ],
)
def test_any_grid_gets_a_head_that_fits(shape, spacing):
    case = phantom_case(0, shape, spacing)
    assert case.image.shape == (2, *shape)
    assert case.grid.spacing == pytest.approx(spacing)
    assert case.label.any()
    assert 0.1 < case.brain.mean() < 0.6
    assert np.isfinite(case.image).all()


def test_a_finer_grid_shows_the_same_head():
    coarse = phantom_case(4, (32, 36, 32), (6.0, 6.0, 6.0), lesions=(0, 0))
    fine = phantom_case(4, (64, 72, 64), (3.0, 3.0, 3.0), lesions=(0, 0))
    pooled = fine.brain.reshape(32, 2, 36, 2, 32, 2).mean((1, 3, 5)) >= 0.5
    overlap = 2 * (pooled & (coarse.brain == 1)).sum() / (pooled.sum() + coarse.brain.sum())
    assert overlap > 0.95


def test_the_list_has_all_files_and_the_splits_asked_for(phantom_list):
    datalist = read_datalist(phantom_list)
    assert [len(datalist.split(split)) for split in SPLITS] == [6, 2, 2]
    case = datalist.cases[0]
    assert [path.name for path in case.image] == [
        "phantom_0000_flair.nii.gz",
        "phantom_0000_t1.nii.gz",
    ]
    assert case.subject == case.name == "phantom_0000"
    grids = [read_volume(path).grid for path in case.image]
    grids.append(read_mask(case.label, (0, 1)).grid)
    grids.append(read_mask(case.extra["brain"], (0, 1)).grid)
    assert all(grid == grids[0] for grid in grids)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="not an empty folder"):
        write_phantoms(tmp_path, 1, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_that_fails_leaves_nothing(tmp_path):
    def stop(index, *_):
        if index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path, 2, progress=stop, **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "1 or more"),
        ({"count": -2}, "1 or more"),
        ({"splits": (1, 1)}, "three shares"),
        ({"splits": (1, -1, 1)}, "three shares"),
        ({"lesions": (3, 1)}, "from 3 to 1"),
        ({"lesions": (-1, 1)}, "from -1 to 1"),
        ({"shape": (4, 24, 24)}, "8 or more"),
        ({"lesions": (500, 500)}, "found room"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(SettingError, match=message):
        write_phantoms(tmp_path / "out", **({"count": 1, **SMALL} | settings))
    assert not list(tmp_path.rglob("*.nii.gz"))


@pytest.mark.slow
def test_a_full_head_takes_seconds():
    start = time.process_time()
    phantom_case(0, (182, 218, 182), (1.0, 1.0, 1.0), lesions=(8, 8))
    assert time.process_time() - start < 20
