import json
from pathlib import Path

import pytest

from medvae3d.data.manifests import (
    SPLITS,
    Case,
    DataList,
    as_monai,
    read_datalist,
    read_manifest,
    sha256_of,
    split_of,
    subject_of,
    write_datalist,
)
from medvae3d.errors import DataListError, MedvaeError, UnreadableFileError

MANIFESTS = sorted((Path(__file__).parents[2] / "data_manifests").glob("*.json"))


def listed(tmp_path, content, files=()):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    path = tmp_path / "datalist.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# Data lists.


def test_paths_are_relative_to_the_list_and_all_keys_survive(tmp_path):
    content = {
        "name": "set",
        "labels": {"0": "background", "1": "lesion"},
        "training": [
            {"image": ["i/A_01_pet.nii.gz", "i/A_01_ct.nii.gz"], "label": "l/A_01_gtv.nii.gz",
             "brainmask": "b/A_01.nii.gz", "age": 60},
        ],
        "validation": [{"image": "i/B_02_pet.nii.gz", "subject": "someone"}],
        "testing": [{"label": "l/C_03_gtv.nii.gz"}],
    }  # fmt: skip
    files = [f"i/{n}.nii.gz" for n in ("A_01_pet", "A_01_ct", "B_02_pet")]
    path = listed(tmp_path, content, [*files, "l/A_01_gtv.nii.gz", "l/C_03_gtv.nii.gz"])
    datalist = read_datalist(path)
    first, second, third = datalist
    assert first.image == (tmp_path / "i/A_01_pet.nii.gz", tmp_path / "i/A_01_ct.nii.gz")
    assert first.extra == {"brainmask": tmp_path / "b/A_01.nii.gz", "age": 60}
    assert (first.name, first.subject, second.subject) == ("A_01", "A_01", "someone")
    assert third.image == ()
    assert [case.split for case in datalist] == list(SPLITS)
    assert datalist.split("testing") == (third,)
    assert datalist.info == {"name": "set", "labels": content["labels"]}


def test_what_is_written_is_what_is_read(tmp_path):
    root = tmp_path / "elsewhere"
    cases = (
        Case((root / "a_flair.nii.gz", root / "a_t1.nii.gz"), root / "a_lesion.nii.gz", "a",
             "training", {"brain": root / "a_brain.nii.gz", "site": 3}),
        Case((), tmp_path / "b_lesion.nii.gz", "b", "testing"),
    )  # fmt: skip
    write_datalist(tmp_path / "sub" / "list.json", cases, {"licence": "CC0"})
    content = json.loads((tmp_path / "sub" / "list.json").read_text())
    assert content["testing"][0]["label"] == "../b_lesion.nii.gz"
    back = read_datalist(tmp_path / "sub" / "list.json", check_files=False)
    resolved = [[f.resolve() for f in case.files] for case in back]
    assert resolved == [[f.resolve() for f in case.files] for case in cases]
    assert [(c.subject, c.split) for c in back] == [("a", "training"), ("b", "testing")]
    assert back.cases[0].extra["site"] == 3
    assert back.info == {"licence": "CC0"}


def test_monai_gets_absolute_strings_and_no_key_for_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = Case((Path("a_t1.nii.gz"),), None, "a", "training", {"brain": Path("b.nii.gz"), "n": 1})
    (item,) = as_monai([case])
    assert item == {
        "image": str(tmp_path / "a_t1.nii.gz"),
        "brain": str(tmp_path / "b.nii.gz"),
        "n": 1,
        "case": "a",
        "subject": "a",
        "split": "training",
    }
    (mask_only,) = as_monai([Case((), Path("a.nii.gz"), "a", "training")])
    assert "image" not in mask_only


def test_monai_reads_the_list_too(phantom_list):
    from monai.data import load_decathlon_datalist

    theirs = load_decathlon_datalist(str(phantom_list), True, "training")
    mine = as_monai(read_datalist(phantom_list).split("training"))
    assert [item["label"] for item in theirs] == [item["label"] for item in mine]
    assert [item["image"] for item in theirs] == [item["image"] for item in mine]


@pytest.mark.parametrize(
    ("files", "subject"),
    [
        (["STS_001_pet.nii.gz", "STS_001_ct.nii.gz"], "STS_001"),
        (["hippocampus_003.nii.gz", "hippocampus_003.nii.gz"], "hippocampus_003"),
        (["patient19_flair.nii.gz"], "patient19"),
        (["sub-0008_lesion.nii.gz"], "sub-0008"),
        (["sub-01_ses-02_T1w.nii.gz"], "sub-01"),
        (["case_7_0000.nii.gz", "case_7_0001.nii.gz", "case_7.nii.gz"], "case_7"),
        (["phantom_0000.nii.gz"], "phantom_0000"),
        (["ann/t1.nii.gz", "ann/lesion.nii.gz"], "ann"),
        (["BRATS_001.nii"], "BRATS_001"),
        (["site_a.nii.gz"], "site_a"),
    ],
)
def test_subjects_are_told_from_file_names(files, subject):
    assert subject_of([Path(file) for file in files]) == subject


def test_real_lists_have_one_subject_a_patient(shared_data):
    for name in ("hippocampus", "sts_petct", "soop_masks", "lesymap_masks"):
        datalist = read_datalist(shared_data / name / "datalist.json")
        assert len({case.subject for case in datalist}) == len(datalist)


def test_the_test_part_of_a_decathlon_list_is_images_alone(tmp_path):
    path = listed(
        tmp_path, {"training": [], "test": ["./imagesTs/x_1.nii.gz"]}, ["imagesTs/x_1.nii.gz"]
    )
    (case,) = read_datalist(path)
    assert (case.split, case.label, len(case.image)) == ("testing", None, 1)


def test_merging_prefers_the_case_with_the_image(tmp_path):
    mask = {name: tmp_path / f"{name}_lesion.nii.gz" for name in "abc"}
    masks = DataList(tuple(Case((), mask[n], n, "training") for n in "ab"), tmp_path)
    image = (tmp_path / "b_t1.nii.gz",)
    full = DataList(
        (Case(image, mask["b"], "b", "training"), Case((), mask["c"], "c", "testing")), tmp_path
    )
    for merged in (masks.merged(full), full.merged(masks)):
        assert sorted((c.subject, len(c.image)) for c in merged) == [("a", 0), ("b", 1), ("c", 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "is not JSON"),
        ("[]", "holds a list; allowed is a JSON object"),
        ({}, "at least one of training"),
        ({"training": {"image": "a"}}, "each a list of cases"),
        ({"train": [], "extra": 1, "training": [7]}, "entry 0 of training is a int"),
        ({"training": [{"subject": "a"}]}, r"keys \['subject'\]; it needs image, label"),
        ({"training": [{"image": 3}]}, "has image 3"),
        ({"training": [{"image": ["a.nii", 4]}]}, "allowed are a path"),
        ({"training": [{"image": "a.nii", "label": ["b.nii"]}]}, "allowed are a path"),
        ({"training": [{"image": ""}]}, "allowed are a path|it needs image"),
        ({"training": [{"image": "a.nii", "subject": []}]}, "allowed is a name"),
    ],
)
def test_lists_of_wrong_shape_are_refused_with_the_place(tmp_path, content, message):
    path = listed(tmp_path, content)
    with pytest.raises(DataListError, match=message) as caught:
        read_datalist(path, check_files=False)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, MedvaeError)


def test_missing_files_are_named_and_counted(tmp_path):
    path = listed(
        tmp_path, {"training": [{"image": f"{i}.nii.gz"} for i in range(5)]}, ["0.nii.gz"]
    )
    with pytest.raises(UnreadableFileError, match=r"names 4 files .*1\.nii\.gz.*, \.\.\."):
        read_datalist(path)
    assert len(read_datalist(path, check_files=False)) == 5


def test_a_missing_list_is_unreadable(tmp_path):
    with pytest.raises(UnreadableFileError, match="cannot be read"):
        read_datalist(tmp_path / "none.json")


def test_an_unknown_split_is_an_error_not_an_empty_one(tmp_path):
    datalist = read_datalist(listed(tmp_path, {"training": ["x_1.nii.gz"]}, ["x_1.nii.gz"]))
    assert datalist.split("validation") == ()
    with pytest.raises(DataListError, match="allowed are training, validation, testing"):
        datalist.split("valid")


# Manifests.


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_each_manifest_is_complete(path):
    manifest = read_manifest(path)
    assert manifest.citations
    assert manifest.licence["url"].startswith("http")
    assert not manifest.label_values or manifest.label_values[0] == "background"
    assert len(manifest.cases) in (0, manifest.size["cases"])
    assert sum(manifest.size.get("splits", {}).values()) in (0, len(manifest.cases))
    for entry in manifest.cases:
        assert len(entry.get("image", ())) in (0, len(manifest.channels))
        files = [*entry.get("image", ()), *([entry["label"]] if "label" in entry else [])]
        assert all(len(file["sha256"]) == 64 for file in files)
    if not manifest.cases:
        assert len(manifest.layouts[0]["image"]) in (1, len(manifest.channels))


def test_the_manifests_of_the_field_are_there():
    names = {path.stem for path in MANIFESTS}
    assert names >= {
        "hippocampus", "sts_petct", "open_ms", "soop_masks", "lesymap_masks", "host_mni152",
        "msd_task01_braintumour", "msd_task04_hippocampus", "brats_2021", "brats_2023_gli",
        "hecktor_2022", "atlas_2", "isles_2022", "mslesseg",
    }  # fmt: skip


@pytest.mark.parametrize(
    "path", [path for path in MANIFESTS if '"cases": [' in path.read_text()], ids=lambda p: p.stem
)
def test_real_copies_match_their_manifest(path, shared_data):
    root = shared_data / path.stem
    manifest = read_manifest(path)
    result = manifest.verify(root)
    assert result.is_complete
    assert not result.unchecked
    datalist = manifest.to_datalist(root)
    assert len(datalist) == manifest.size["cases"]
    official = {c.label: c.split for c in read_datalist(root / "datalist.json") if c.label}
    assert all(c.split == official.get(c.label, c.split) for c in datalist)


def test_open_ms_is_one_list_with_masks_alone_where_there_is_no_image(shared_data):
    path = next(path for path in MANIFESTS if path.stem == "open_ms")
    datalist = read_manifest(path).to_datalist(shared_data / "open_ms")
    training = datalist.split("training")
    assert len(training) == 15
    assert [case.name for case in training if case.image] == ["patient19"]
    assert [case.name for case in datalist.split("validation") if case.image] == ["patient07"]
    assert {len(case.image) for case in datalist} == {0, 4}


def minimal(**changes):
    content = {
        "name": "set", "title": "A set", "source": "https://example.org", "how_to_get": "Ask.",
        "licence": {"name": "CC0-1.0", "url": "https://example.org/cc0"}, "citations": ["Nobody"],
        "label_values": {"0": "background", "1": "lesion"},
        "channels": [{"name": "t1", "unit": "arbitrary"}],
        "spacing": {"values": [[1, 1, 1]]}, "size": {"cases": 1}, "limitations": [],
        "cases": [{"case": "a", "subject": "a", "split": "training",
                   "label": {"path": "a.nii.gz", "sha256": None}}],
    }  # fmt: skip
    return {key: value for key, value in (content | changes).items() if value is not ...}


def manifest_file(tmp_path, **changes):
    path = tmp_path / "set.json"
    path.write_text(json.dumps(minimal(**changes)))
    return path


def entry(**changes):
    return {"case": "a", "subject": "a", "split": "training", "label": {"path": "a.nii"}} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licence": ...}, r"licence \(missing\)"),
        ({"title": 4}, r"title \(int\)"),
        ({"colour": "red"}, r"colour \(unknown\)"),
        ({"name": "other"}, "is named 'other'"),
        ({"source": ""}, "has no source"),
        ({"licence": {"name": "CC0"}}, "licence.url"),
        ({"channels": [{"name": "t1"}]}, r"channels\[0\].unit"),
        ({"size": {"cases": "many"}}, "size.cases"),
        ({"label_values": {"one": "lesion"}}, r"label values \['one'\]"),
        ({"cases": ...}, "cases, or layouts"),
        ({"cases": [], "layouts": [{"case": "x"}]}, "cases, or layouts"),
        ({"cases": [{"case": "a"}]}, "lacks subject, split"),
        ({"cases": [entry(split="train")]}, "known split|a split"),
        ({"cases": [entry(label=None)]}, "lacks files"),
        ({"cases": [entry(label={"path": "/a.nii"})]}, "no relative path"),
        ({"cases": [entry(label={"path": "a.nii", "sha256": "12"})]}, "64 hexadecimal digits"),
        ({"cases": [entry(), entry(split="testing")]}, "a is in training and in testing"),
    ],
)
def test_wrong_manifests_are_refused(tmp_path, changes, message):
    with pytest.raises(DataListError, match=message):
        read_manifest(manifest_file(tmp_path, **changes))


def test_verify_tells_missing_changed_and_unknown_apart(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    digest = sha256_of(tmp_path / "a")
    files = {"a": digest, "b": digest, "c": None, "d": digest}
    cases = [entry(case=n, subject=n, label={"path": n, "sha256": s}) for n, s in files.items()]
    result = read_manifest(manifest_file(tmp_path, cases=cases)).verify(tmp_path)
    assert (result.same, result.changed) == (("a",), ("b",))
    assert (result.unchecked, result.missing) == (("c",), ("d",))
    assert not result.is_complete


def test_a_layout_finds_cases_and_keeps_the_visits_of_a_patient_together(tmp_path):
    for subject in range(30):
        for visit in (1, 2):
            folder = tmp_path / f"P{subject}-{visit}"
            folder.mkdir()
            for word in ("t1", "seg"):
                (folder / f"P{subject}-{visit}-{word}.nii.gz").write_bytes(b"")
            (folder / f"._P{subject}-{visit}-seg.nii.gz").write_bytes(b"from a Mac")
    stem = "{subject}-{visit}/{subject}-{visit}"
    layout = {"image": [f"{stem}-t1.nii.gz"], "label": f"{stem}-seg.nii.gz"}
    manifest = read_manifest(manifest_file(tmp_path, cases=[], layouts=[layout]))
    datalist = manifest.to_datalist(tmp_path)
    assert len(datalist) == 60
    splits = {}
    for case in datalist:
        assert case.image[0].is_file()
        splits.setdefault(case.subject, set()).add(case.split)
    assert len(splits) == 30
    assert all(len(found) == 1 for found in splits.values())
    assert len(set.union(*splits.values())) == 3
    assert datalist == manifest.to_datalist(tmp_path)


def test_an_empty_copy_says_what_was_expected(tmp_path):
    layouts = [{"label": "labelsTr/{case}.nii.gz"}]
    manifest = read_manifest(manifest_file(tmp_path, cases=[], layouts=layouts))
    with pytest.raises(DataListError, match=r"labelsTr/\{case\}\.nii\.gz.*Ask\."):
        manifest.to_datalist(tmp_path)


def test_splits_by_name_have_the_shares_asked_for():
    splits = [split_of(f"patient {i}") for i in range(5000)]
    shares = [splits.count(split) / len(splits) for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
