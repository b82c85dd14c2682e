"""Claims about reports: what they hold, and what happens where something is missing."""

from __future__ import annotations

import json
from html import escape

import pytest

from medvae3d.apps import evaluate_sections
from medvae3d.apps.evaluate import evaluate
from medvae3d.data.datalists import read_datalist
from medvae3d.data.phantom import write_phantoms
from medvae3d.errors import DataListError, SettingError
from medvae3d.evaluation.intervals import mean_interval
from medvae3d.evaluation.sections import Distribution, Light, Measure, Section, Verdict

SIZE = {"shape": (16, 18, 16), "spacing": (11.0, 11.0, 11.0), "lesions": (1, 2)}


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """Data lists of six real and four other phantoms; do not write beside them."""
    root = tmp_path_factory.mktemp("evaluate")
    return {
        "real": write_phantoms(root / "real", 6, 1, **SIZE),
        "synthetic": write_phantoms(root / "made", 4, 2, **SIZE),
    }


def brightness(judged):
    """A section that needs next to no time, with one of everything that a section may hold."""
    sets = {
        "real": judged.real.image.flatten(1).mean(1).tolist(),
        "synthetic": judged.synthetic.image.flatten(1).mean(1).tolist(),
    }
    rows = {
        name: {"mean": Measure.of(mean_interval(values, judged.seed), note=f"of <{name}>")}
        for name, values in sets.items()
    }
    rows["apart"] = {"mean": Measure(0.125, 0.1, 0.15, (4, 4), 0.0625, 0.05, 0.075)}
    cases = dict(zip(judged.synthetic.names, sets["synthetic"], strict=True))
    return Section(
        "brightness", "Brightness & more", "Mean of each case.", {"means": rows},
        {"share": float("inf")},
        [Distribution("mean", "", sets), Distribution("none", "", {"real": [float("nan")]})],
        {"synthetic": {name: {"mean": value} for name, value in cases.items()}},
        [Verdict("is bright", Light.AMBER, "0.125 apart", "amber above 0.1")],
        ["few cases"],
    )  # fmt: skip


def failing(judged):
    raise DataListError("all masks are empty")


@pytest.fixture
def stubs(monkeypatch):
    """Replaces the sections by quick ones."""
    made = {"brightness": brightness, "failing": failing}
    monkeypatch.setattr(evaluate_sections, "SECTIONS", made)
    return made


@pytest.fixture(scope="module")
def report(lists, tmp_path_factory):
    """A report of the stub sections: its folder, what was returned, and the page."""
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_sections, "SECTIONS", {"brightness": brightness, "failing": failing})
        found = evaluate(lists["real"], lists["synthetic"], out=out, command="by hand")
    return out, found, (out / "index.html").read_text(encoding="utf-8")


# What a report holds.


def test_a_section_that_cannot_be_computed_says_why_and_holds_up_nothing(report):
    out, found, page = report
    assert found["sections"]["failing"]["not_computed"] == "all masks are empty"
    assert found["sections"]["brightness"]["tables"]["means"]["real"]["mean"]["n"] == 4
    assert found["sections"]["brightness"]["facts"] == {"share": None}, "JSON has no infinity"
    assert "all masks are empty" in page
    assert json.loads((out / "report.json").read_text()) == found


def test_a_fault_of_ours_is_not_swallowed_and_nothing_is_written(lists, stubs, tmp_path):
    def broken(judged):
        raise ZeroDivisionError

    stubs["failing"] = broken
    with pytest.raises(ZeroDivisionError):
        evaluate(lists["real"], lists["synthetic"], out=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_page_shows_every_number_with_its_interval_floor_and_count(report):
    _, found, page = report
    for row, columns in found["sections"]["brightness"]["tables"]["means"].items():
        assert f"<td>{escape(row)}</td>" in page
        for measure in columns.values():
            assert f"<b>{measure['value']:.3g}</b>" in page
            assert f"({measure['low']:.3g} to {measure['high']:.3g})" in page
    assert "floor 0.0625 (0.05 to 0.075)" in page
    assert "n = 4 and 4" in page
    assert "of &lt;real&gt;" in page, "notes are text, not HTML"
    for words in ("Brightness &amp; more", "Is bright", "mber above 0.1", "few cases"):
        assert words in page
    for case in found["sections"]["brightness"]["cases"]["synthetic"]:
        assert case in page


def test_the_page_needs_no_other_file(report):
    _, _, page = report
    without_volumes = page.partition('id="volumes"')[0]
    assert "default-src 'none'" in without_volumes
    assert "<svg" in without_volumes and "data:image/png;base64," in without_volumes
    for word in ('src="http', 'href="http', "@import", "<link", "url("):
        assert word not in without_volumes.replace("url(#", "")


def test_a_report_says_where_it_comes_from(report, lists):
    import hashlib

    _, found, _ = report
    for name, key in (("real", "real"), ("synthetic", "synthetic"), ("reference", "real")):
        wanted = hashlib.sha256(lists[key].read_bytes()).hexdigest()
        assert found["inputs"][name]["sha256"] == wanted
        assert len(found["inputs"][name]["files_sha256"]) == 64
    assert {"python", "torch", "monai", "medvae3d", "platform"} <= set(found["versions"])
    assert found["command"] == "by hand"
    assert set(found["times"]["seconds"]) == {"reading", "brightness", "failing"}


def test_the_same_cases_and_seed_give_the_same_report(report, lists, stubs, tmp_path):
    out, found, page = report
    again = evaluate(lists["real"], lists["synthetic"], out=tmp_path, command="by hand")
    first, second = (dict(each, times=None) for each in (found, again))
    assert first == second
    for name in ("real.png", "synthetic.png"):
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes()
    other = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.partition('id="how"')[0] == other.partition('id="how"')[0]


def test_reference_cases_are_those_that_the_real_split_leaves(report, lists, stubs):
    _, found, _ = report
    assert found["inputs"]["real"]["splits"] == ["training"]
    assert found["inputs"]["reference"]["splits"] == ["validation", "testing"]
    counts = {name: found["inputs"][name]["cases"] for name in ("real", "reference")}
    assert counts == {"real": 4, "reference": 2}
    whole = evaluate(lists["real"], lists["synthetic"], real_split="all")
    assert "reference" not in whole["inputs"] and whole["inputs"]["real"]["cases"] == 6
    named = evaluate(lists["real"], lists["synthetic"], lists["real"])
    assert named["inputs"]["reference"]["cases"] == 2, "the same list again: the cases left"


# Settings.


def test_a_subset_is_drawn_by_seed_and_pairs_lose_the_same_cases(lists, stubs):
    seen = []

    def look(judged):
        seen.append((judged.real.names, judged.synthetic.names))
        return brightness(judged)

    stubs |= {"paired": look}
    options = {"most": 2, "paired": True, "sections": "paired"}
    for seed in (0, 0, 3):
        evaluate(lists["real"], lists["real"], real_split="all", seed=seed, **options)
    assert seen[0] == seen[1] != seen[2]
    assert seen[0][0] == seen[0][1] and len(seen[0][0]) == 2


def test_pairs_that_do_not_exist_are_refused(lists, stubs, tmp_path):
    text = lists["synthetic"].read_text().replace('"subject": "', '"case": "other_')
    other = lists["synthetic"].with_name("renamed.json")
    other.write_text(text)
    with pytest.raises(DataListError, match="no case of .*renamed.json"):
        evaluate(lists["real"], other, paired=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sections": "realism,wrong"}, "allowed are paired, realism"),
        ({"sections": "paired"}, "add --paired"),
        ({"sections": "masks", "kept_list": "x.json"}, "Add it, or leave --filter away"),
        ({"features": "medicalnet"}, "medicalnet=FILE"),
        ({"features": "lpips=x"}, "allowed are radiomics"),
        ({"intensity": "window"}, "allowed are range, percentile"),
        ({"real_split": "nowhere"}, "allowed are training"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(lists, options, words):
    with pytest.raises(SettingError, match=words):
        evaluate(lists["real"], lists["synthetic"], **options)


def test_missing_weights_of_features_leave_out_their_sections_alone(lists):
    found = evaluate(
        lists["real"], lists["synthetic"], sections="realism,masks", features="medicalnet=none.pth"
    )
    assert "none.pth" in found["sections"]["realism"]["not_computed"]
    assert "tables" in found["sections"]["masks"]


def test_the_list_without_bad_pairs_holds_the_good_ones_alone(lists, stubs, tmp_path):
    def agreement(judged):
        dice = dict(zip(judged.synthetic.names, (0.9, 0.2, 0.5, 0.0), strict=True))
        rows = {name: {"dice": value} for name, value in dice.items()}
        return Section("agreement", "A", cases={"synthetic": rows}, facts={"threshold": 0.5})

    stubs["agreement"] = agreement
    kept = tmp_path / "kept.json"
    evaluate(lists["real"], lists["synthetic"], sections="agreement", kept_list=kept)
    written = read_datalist(kept)
    names = [case.name for case in read_datalist(lists["synthetic"])]
    assert [case.name for case in written] == [names[0], names[2]]
    assert written.info["channels"] == ["flair", "t1"]


# The command.


def test_the_command_writes_a_report_and_prints_the_verdicts(cli, lists, stubs, tmp_path):
    done = cli(
        "evaluate", "--real", lists["real"], "--synthetic", lists["synthetic"],
        "--out", tmp_path / "report", "--sections", "brightness", "--viewer-cases", "0",
    )  # fmt: skip
    assert done.code == 0
    assert "is bright" in done.out and "amber" in done.out
    page = (tmp_path / "report" / "index.html").read_text()
    assert 'id="viewer"' not in page and "image/png" not in page
    assert not list((tmp_path / "report").glob("*.png")), "no picture of a case"


def test_json_and_quiet_print_that_and_nothing(cli, lists, stubs, tmp_path):
    words = ["evaluate", "--real", lists["real"], "--synthetic", lists["synthetic"]]
    words += ["--out", tmp_path / "report", "--sections", "brightness", "--viewer-cases", "0"]
    done = cli(*words, "--json")
    assert json.loads(done.out) == json.loads((tmp_path / "report" / "report.json").read_text())
    done = cli(*words, "--quiet")
    assert done.out == done.error == ""


def test_a_folder_with_other_files_is_refused_and_left_as_it_was(refused, lists, tmp_path):
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "thesis.tex").write_text("mine")
    done = refused(
        "evaluate", "--real", lists["real"], "--synthetic", lists["synthetic"], "--out", tmp_path
    )
    assert "thesis.tex" in done
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.integration
def test_the_real_sections_give_a_report(cli, lists, tmp_path):
    done = cli(
        "evaluate", "--real", lists["real"], "--synthetic", lists["synthetic"],
        "--out", tmp_path / "report", "--sections", "realism,diversity,masks,privacy",
    )  # fmt: skip
    assert done.code == 0
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    for name, section in found["sections"].items():
        assert section.get("tables"), f"{name}: {section.get('not_computed')}"
