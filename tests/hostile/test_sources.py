"""Claims about hostile DICOM series, NRRD and MetaImage files: a sentence, and nothing written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hostile import make_sources


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return make_sources.make_dicom(tmp_path_factory.mktemp("hostile") / "dicom")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_sources.make_itk(tmp_path_factory.mktemp("hostile") / "itk")


def faults_of(runner, sources, out):
    found = {
        source.name: runner.faults(["data", "import", source, "--out", out / "o"], out)
        for source in sources
    }
    return {name: faults for name, faults in found.items() if faults}


def listed(path):
    """A data list that names a file, as `data import` takes it."""
    content = {"training": [{"image": path.name, "case": "a"}]}
    (path.parent / "list.json").write_text(json.dumps(content))
    return path.parent / "list.json"


def test_there_are_many_of_them(series, files):
    assert len(series) >= 60 and len(files) >= 80


def test_a_series_and_files_like_them_are_read(runner, tmp_path):
    """What is refused is refused for what was changed in it."""
    from medvae3d.data.datalists import read_datalist
    from medvae3d.data.volumes import read_volume

    (tmp_path / "dicom").mkdir()
    for name, content in make_sources.series(make_sources.plane(3)).items():
        (tmp_path / "dicom" / name).write_bytes(content)
    planes = [np.frombuffer(make_sources.pixels(n), "<i2").reshape(4, 4) for n in range(4)]
    stacks = {"dicom": np.stack(planes, -1).transpose(1, 0, 2)}
    for kind, content in (("nrrd", make_sources.nrrd()), ("mha", make_sources.meta())):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"a.{kind}").write_bytes(content)
        stacks[kind] = np.arange(64).reshape(4, 4, 4).transpose(2, 1, 0)
    for kind, values in stacks.items():
        done = runner.run(["data", "import", tmp_path / kind, "--out", tmp_path / f"{kind}_out"])
        assert (done.code, done.raised) == (0, None), done
        (case,) = read_datalist(tmp_path / f"{kind}_out" / "datalist.json").cases
        found = read_volume(case.image[0]).array
        assert np.array_equal(np.sort(found, None), np.sort(values, None))


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("kind", ["nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_itk_writes_is_read(tmp_path, kind, channels, is_packed):
    import SimpleITK as sitk

    from medvae3d.data.importing.common import read_itk

    values = np.arange(4 * 5 * 6 * channels, dtype=np.float32).reshape(4, 5, 6, channels)
    image = sitk.GetImageFromArray(values if channels > 1 else values[..., 0], channels > 1)
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetMetaData("0008|103e", "a series")
    sitk.WriteImage(image, str(tmp_path / f"a.{kind}"), is_packed)
    array, grid = read_itk(tmp_path / f"a.{kind}")
    assert np.array_equal(array, values.transpose(3, 2, 1, 0))
    assert np.allclose(grid.spacing, (0.7, 0.9, 2.5))


def test_hostile_series_are_refused(runner, series, tmp_path):
    assert faults_of(runner, series, tmp_path) == {}


def test_hostile_files_are_refused_in_folders_and_in_lists(runner, files, tmp_path):
    assert faults_of(runner, [path.parent for path in files], tmp_path) == {}
    lists = {path.name: faults_of(runner, [listed(path)], tmp_path) for path in files}
    assert {name: found for name, found in lists.items() if found} == {}
