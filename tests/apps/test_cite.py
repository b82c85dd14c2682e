"""What ``medvae3d cite`` prints names everything once, as BibTeX that others can read."""

from __future__ import annotations

import json
import re

import pytest

from medvae3d.apps.cite import from_text

DATA = (
    "Lesjak Z et al., A novel public MR image dataset, Neuroinformatics 16:51-63, 2018, "
    "DOI 10.1007/s12021-017-9348-7"
)


def keys(text):
    return re.findall(r"^@\w+\{([^,]+),", text, flags=re.MULTILINE)


def test_a_bundle_is_cited_with_method_data_and_software(cli):
    found = cli("cite", "sts_petct_hvae").out
    assert "10.7937/K9/TCIA.2015.7GO2GSKS" in found  # the data
    assert "2311.10472" in found  # the joint model
    assert "1805.11328" in found  # the flow
    assert "2211.02701" in found  # MONAI
    assert keys(found)[0] == "medvae3d"


@pytest.mark.parametrize(
    "bundle", ["sts_petct_hvae", "sts_petct_pavae", "brain_mri_ms_pavae", "hippocampus_mri_hvae"]
)
def test_nothing_is_cited_twice_and_braces_match(cli, bundle):
    found = cli("cite", bundle).out
    assert len(keys(found)) == len(set(keys(found)))
    titles = [title.casefold() for title in re.findall(r"title = \{+([^{}]+)", found)]
    assert len(titles) == len(set(titles))
    assert not any(one != two and one in two for one in titles for two in titles)
    assert found.count("{") == found.count("}")


def test_a_system_is_cited_by_its_papers(cli):
    entries = json.loads(cli("cite", "vqvae", "--json").out)
    assert any("Neural discrete representation learning" in entry for entry in entries)


def test_a_line_of_text_keeps_authors_year_and_identifier():
    key, entry = from_text(DATA)
    assert key == "lesjak2018novel"
    assert "author = {Lesjak Z and others}" in entry
    assert "doi = {10.1007/s12021-017-9348-7}" in entry
    assert "year = {2018}" in entry
    _, entry = from_text("Caterini AL, Doucet A, Sejdinovic D, Hamiltonian variational one, 2018")
    assert "author = {Caterini AL and Doucet A and Sejdinovic D}" in entry
    assert "title = {{Hamiltonian variational one, 2018}}" in entry


def test_samples_are_cited_as_their_records_say(cli, tmp_path):
    (tmp_path / "records").mkdir()
    record = {"bundle": "sts_petct_hvae 0.1.0", "cite": [DATA]}
    (tmp_path / "records" / "a.json").write_text(json.dumps(record))
    found = cli("cite", tmp_path).out
    assert "10.1007/s12021-017-9348-7" in found
    assert "1805.11328" in found


def test_what_is_not_there_is_refused(refused, tmp_path):
    assert "no bundle, system, folder of samples or record" in refused("cite", "sts_petct")
    (tmp_path / "a.json").write_text("[1]")
    assert "holds no JSON object" in refused("cite", tmp_path / "a.json")
