import gzip
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest

from medvae3d.data.volumes import (
    label_values,
    read_mask,
    read_volume,
    write_edited,
    write_volume,
)
from medvae3d.errors import (
    GridError,
    GridMismatchError,
    IntensityError,
    LabelError,
    MedvaeError,
    OutputError,
    UnreadableFileError,
)
from medvae3d.geometry import Grid

SHAPE = (5, 6, 7)
AFFINE = np.array([[-2, 0.5, 0, 9], [0.5, 2, 0, -8], [0, 0, 3, 7], [0, 0, 0, 1.0]])
GRID = Grid(SHAPE, AFFINE)


def noise(dtype=np.float32, shape=SHAPE):
    return (np.random.default_rng(0).normal(size=shape) * 40).astype(dtype)


def save(path, array, affine=AFFINE, header=None, kind=nib.Nifti1Image, **fields):
    """Writes a file with nibabel, then overwrites header fields without its checks."""
    image = kind(array, affine, header)
    raw = bytearray(image.to_bytes())
    template = kind.header_class.from_fileobj(io.BytesIO(bytes(raw)), check=False)
    for name, value in fields.items():
        template[name] = value
    raw[: len(template.binaryblock)] = template.binaryblock
    path.write_bytes(gzip.compress(bytes(raw)) if path.name.endswith(".gz") else bytes(raw))
    return path


# What is written is what is read.


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "u2", "f4"])
def test_voxels_and_affine_survive_and_nibabel_agrees(tmp_path, name, dtype):
    array = np.abs(noise()).astype(dtype)
    write_volume(tmp_path / name, array, GRID)
    mine, theirs = read_volume(tmp_path / name), nib.load(tmp_path / name)
    np.testing.assert_array_equal(mine.array, array.astype(np.float32))
    np.testing.assert_array_equal(theirs.get_fdata(), array)
    assert theirs.get_data_dtype() == mine.dtype == np.dtype(dtype)
    assert mine.grid == GRID
    np.testing.assert_allclose(theirs.get_qform(), AFFINE, atol=1e-4)
    np.testing.assert_array_equal(theirs.get_sform(), AFFINE)
    assert theirs.header.get_xyzt_units()[0] == "mm"
    assert (theirs.header["qform_code"], theirs.header["sform_code"]) == (1, 1)


@pytest.mark.parametrize(
    ("given", "stored"), [(bool, "u1"), ("i8", "i4"), ("f8", "f4"), ("f2", "f4"), ("i1", "i1")]
)
def test_types_that_nifti_readers_lack_are_changed(tmp_path, given, stored):
    array = (noise() > 0).astype(given)
    write_volume(tmp_path / "a.nii", array, GRID)
    volume = read_volume(tmp_path / "a.nii")
    assert volume.dtype == np.dtype(stored)
    np.testing.assert_array_equal(volume.array, array.astype(np.float32))


def test_a_slope_stores_steps_and_gives_values_back(tmp_path):
    array = noise()
    write_volume(tmp_path / "a.nii.gz", array, GRID, slope=0.05)
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.dtype == np.int16
    assert np.abs(volume.array - array).max() <= 0.0251
    np.testing.assert_allclose(nib.load(tmp_path / "a.nii.gz").get_fdata(), volume.array, atol=1e-5)


def test_values_that_do_not_fit_are_refused_or_clipped_never_wrapped(tmp_path):
    array = np.full(SHAPE, 40_000.0, np.float32)
    with pytest.raises(IntensityError, match="larger slope"):
        write_volume(tmp_path / "a.nii", array, GRID, slope=1.0)
    assert not list(tmp_path.iterdir())
    write_volume(tmp_path / "a.nii", array, GRID, slope=1.0, clip=True)
    assert read_volume(tmp_path / "a.nii").array.max() == 32767


def test_nan_cannot_become_an_integer(tmp_path):
    with pytest.raises(IntensityError, match="NaN"):
        write_volume(tmp_path / "a.nii", np.full(SHAPE, np.nan, np.float32), GRID, slope=1.0)


def test_equal_volumes_give_equal_bytes_from_any_thread(tmp_path):
    array = noise(np.int16, (24, 24, 24))
    grid = Grid((24, 24, 24), np.eye(4))
    paths = [tmp_path / f"{i}" / f"name{i}.nii.gz" for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: write_volume(path, array, grid), paths))
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert len(digests) == 1
    head = paths[0].read_bytes()[:10]
    assert head[3] == 0, "no name in the gzip header"
    assert head[4:8] == bytes(4), "no time in the gzip header"
    assert len(gzip.decompress(paths[0].read_bytes())) == 352 + array.nbytes


def test_shape_and_grid_must_agree(tmp_path):
    with pytest.raises(GridMismatchError, match="one file a channel"):
        write_volume(tmp_path / "a.nii", noise(shape=(2, *SHAPE)), GRID)


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.nii"
    write_volume(path, noise(), GRID)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write_volume(path, noise() + 1, GRID)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii"]
    assert path.read_bytes() == before


def test_a_folder_that_is_a_file_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_volume(tmp_path / "file" / "a.nii", noise(), GRID)


# Hosts keep what they have.


def host_file(path, **fields):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_xyzt_units("mm", "sec")
    header["descrip"] = b"a scanner"
    header["cal_max"] = 77
    array = noise(np.int16)
    image = nib.Nifti1Image(array, AFFINE, header)
    image.set_qform(AFFINE, 2)
    image.set_sform(AFFINE, 4)
    return save(path, array, header=image.header, **fields)


@pytest.mark.parametrize("fields", [{}, {"scl_slope": 0.37, "scl_inter": -1000.0}])
def test_a_host_written_back_is_the_same_file_but_for_compression(tmp_path, fields):
    path = host_file(tmp_path / "host.nii.gz", **fields)
    host = read_volume(path)
    write_volume(tmp_path / "back.nii.gz", host.array, host.grid, header=host.header)
    with gzip.open(path) as a, gzip.open(tmp_path / "back.nii.gz") as b:
        assert a.read() == b.read()


def test_editing_touches_no_other_voxel(tmp_path):
    """float64 voxels lose bits as float32; those outside of the edit must not."""
    array = noise(np.float64) + 1e-9
    path = save(tmp_path / "host.nii", array)
    where = np.zeros(SHAPE, bool)
    where[1:3, 2, 3] = True
    write_edited(tmp_path / "new.nii", read_volume(path), np.full(SHAPE, 5.0), where)
    new = nib.load(tmp_path / "new.nii")
    np.testing.assert_array_equal(np.asarray(new.dataobj)[~where], array[~where])
    assert (np.asarray(new.dataobj)[where] == 5).all()
    assert new.header.binaryblock == nib.load(path).header.binaryblock


def test_editing_a_host_with_a_fourth_axis_of_one_keeps_it(tmp_path):
    path = save(tmp_path / "host.nii", noise(np.int16)[..., None])
    where = np.zeros(SHAPE, bool)
    where[0, 0, 0] = True
    write_edited(tmp_path / "new.nii", read_volume(path), np.full(SHAPE, 1e6), where)
    new = np.asarray(nib.load(tmp_path / "new.nii").dataobj)
    assert new.shape == (*SHAPE, 1)
    assert new[0, 0, 0, 0] == 32767
    np.testing.assert_array_equal(new[1:, ..., 0], noise(np.int16)[1:])


# What can be read.


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_both_versions_of_nifti_are_read(tmp_path, kind):
    path = save(tmp_path / "a.nii.gz", noise(), kind=kind)
    np.testing.assert_array_equal(read_volume(path).array, noise())
    assert read_volume(path).grid == GRID


def test_big_endian_files_are_read_and_written_back(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    image = nib.Nifti1Image(noise(np.int16), AFFINE, header)
    image.to_filename(tmp_path / "big.nii")
    volume = read_volume(tmp_path / "big.nii")
    np.testing.assert_array_equal(volume.array, noise(np.int16))
    write_volume(tmp_path / "back.nii", volume.array, volume.grid, header=volume.header)
    np.testing.assert_array_equal(read_volume(tmp_path / "back.nii").array, noise(np.int16))


def test_a_channel_axis_comes_first_and_only_when_asked_for(tmp_path):
    array = noise(shape=(*SHAPE, 3))
    path = save(tmp_path / "a.nii", array)
    np.testing.assert_array_equal(read_volume(path, channels=True).array, np.moveaxis(array, -1, 0))
    with pytest.raises(GridError, match="one volume a file"):
        read_volume(path)
    single = save(tmp_path / "b.nii", array[..., :1])
    assert read_volume(single).array.shape == SHAPE
    assert read_volume(single, channels=True).array.shape == (1, *SHAPE)


def test_real_files_read_as_nibabel_reads_them(shared_data):
    for path in sorted(shared_data.glob("*/*/*.nii.gz"))[::197]:
        volume, image = read_volume(path), nib.load(path)
        np.testing.assert_allclose(volume.array, image.get_fdata(), rtol=1e-6, atol=1e-4)
        np.testing.assert_array_equal(volume.grid.affine, image.affine)


# What is refused, before memory is claimed for it.


def whole(path, **fields):
    return save(path, noise(), **fields)


def truncated(path):
    whole(path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def text(path):
    path.write_bytes(b"not an image, but long enough to hold a header" * 20)
    return path


def damaged(path):
    """One bit of the voxels flipped: only the check sum of gzip can see it."""
    whole(path)
    raw = bytearray(path.read_bytes())
    raw[-4 - 4] ^= 1
    path.write_bytes(bytes(raw))
    return path


def huge(path):
    return whole(path, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])


def negative_size(path):
    return whole(path, dim=[3, 5, -6, 7, 1, 1, 1, 1])


def late_voxels(path):
    return whole(path, vox_offset=1e30)


def colours(path):
    return save(path, np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]))


def complex_numbers(path):
    return save(path, noise(np.complex64))


def unknown_type(path):
    return whole(path, datatype=999)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated, "truncated|cannot hold"),
        (text, "not a NIfTI file|cannot be read"),
        (huge, "cannot hold"),
        (negative_size, "at least one voxel"),
        (late_voxels, "places the voxels at byte"),
        (colours, "not colours"),
        (complex_numbers, "complex"),
        (unknown_type, "999"),
    ],
)
def test_unreadable_files_say_so(tmp_path, name, make, message):
    path = make(tmp_path / name)
    with pytest.raises(UnreadableFileError, match=message) as caught:
        read_volume(path, what="image")
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, MedvaeError)


def test_a_damaged_gzip_is_seen_by_its_check_sum(tmp_path):
    with pytest.raises(UnreadableFileError, match="CRC|cannot be read"):
        read_volume(damaged(tmp_path / "a.nii.gz"))


def test_a_bomb_is_not_unpacked(tmp_path):
    """A header that promises 8 GB in a file of a few kB: refused before a byte is read."""
    path = whole(tmp_path / "a.nii.gz", dim=[3, 2000, 2000, 1000, 1, 1, 1, 1])
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(UnreadableFileError, match="16000 MB"):
        read_volume(path)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_an_empty_file_a_missing_one_and_a_folder_are_unreadable(tmp_path):
    (tmp_path / "empty.nii").write_bytes(b"")
    (tmp_path / "folder.nii").mkdir()
    for name, message in [
        ("empty.nii", "not a NIfTI"),
        ("folder.nii", "cannot be read"),
        ("missing.nii", "does not exist"),
        ("image.dcm", "not named as NIfTI"),
    ]:
        with pytest.raises(UnreadableFileError, match=message):
            read_volume(tmp_path / name)


@pytest.mark.parametrize(
    "shape", [(32, 32), (32, 32, 1), (1, 32, 32), (4, 4, 4, 1, 2), (4, 4, 4, 1, 1)]
)
def test_slices_and_five_axes_are_refused(tmp_path, shape):
    path = save(tmp_path / "a.nii", noise(shape=shape))
    with pytest.raises(GridError, match="three axes of two or more"):
        read_volume(path)


@pytest.mark.parametrize("size", [0, -1, np.nan, np.inf])
def test_impossible_spacing_is_refused(tmp_path, size):
    pixdim = np.array([1, 2, size, 3, 1, 1, 1, 1], "f4")
    with pytest.raises(GridError, match="above 0"):
        read_volume(whole(tmp_path / "a.nii", pixdim=pixdim))


def test_a_singular_affine_is_refused(tmp_path):
    path = whole(tmp_path / "a.nii", srow_y=[-2, 0.5, 0, 9], srow_z=[0, 0, 3, 0])
    with pytest.raises(GridError, match="singular") as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


def test_an_affine_of_nan_is_refused(tmp_path):
    with pytest.raises(GridError, match="non-finite"):
        read_volume(whole(tmp_path / "a.nii", srow_x=[np.nan] * 4))


def test_lengths_in_metres_are_refused(tmp_path):
    with pytest.raises(GridError, match="in m; allowed is mm"):
        read_volume(whole(tmp_path / "a.nii", xyzt_units=1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinities_are_counted(tmp_path, value):
    array = noise()
    array[0, 0, :2] = value
    path = save(tmp_path / "a.nii", array)
    with pytest.raises(IntensityError, match=r"2 NaN or infinite voxels of 210"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, finite=False).array, array)


# Masks.


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_whole_numbers_are_a_mask_whatever_their_type(tmp_path, dtype):
    array = np.arange(210).reshape(SHAPE).astype(dtype)
    mask = read_mask(save(tmp_path / "a.nii", array))
    assert mask.array.dtype == np.uint8
    np.testing.assert_array_equal(mask.array, array)


def test_label_values_above_eight_bits_survive(tmp_path):
    array = np.where(noise() > 0, 300, 0).astype(np.int16)
    assert label_values(read_mask(save(tmp_path / "a.nii", array)).array) == (0, 300)


@pytest.mark.parametrize(
    ("values", "found", "message"),
    [
        (None, 0.5, r"no whole numbers, such as 0.5; .*nearest neighbour"),
        ((0, 1), 2.0, r"label values \[2\]; allowed are the values \[0, 1\]"),
        (None, -1.0, r"label values \[-1\]"),
        (None, np.nan, "not an image"),
        (None, 1e20, "not an image"),
    ],
)
def test_other_values_are_no_mask(tmp_path, values, found, message):
    array = np.zeros(SHAPE, np.float32)
    array[0, 0, 0] = found
    path = save(tmp_path / "a.nii", array)
    with pytest.raises(LabelError, match=message) as caught:
        read_mask(path, values)
    assert str(path) in str(caught.value)


def test_label_values_are_sorted_and_complete():
    rng = np.random.default_rng(0)
    for values in [(0, 1), (-3, 0, 7), (5,), (0, 100_000_000)]:
        mask = rng.choice(np.array(values), size=(9, 9, 9))
        assert label_values(mask) == tuple(np.unique(mask))
