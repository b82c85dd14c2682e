"""The gallery: its page, its script and its pictures say the same."""

from __future__ import annotations

import importlib.util
import re
import sys
import xml.etree.ElementTree as tree
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from medvae3d.models import zoo
from medvae3d.models.systems.files import system_names

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "gallery.md"


def script(name):
    """A script of the gallery as a module."""
    spec = importlib.util.spec_from_file_location(
        f"gallery_{name}", ROOT / "docs" / "gallery" / f"{name}.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look for their module
    spec.loader.exec_module(module)
    return module


gallery, diagrams, configs, demo = map(script, ("make", "diagrams", "configs", "demo"))
# Pixels (of 255) that differ where another processor or font library rounds otherwise.
SMALL_STEP, FEW = 24, 0.01


def pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("L"), np.int16)


def share_that_differs(one, other):
    return float((np.abs(one - other) > SMALL_STEP).mean())


def test_the_page_shows_each_picture_under_its_commands():
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    shown = {}
    for part in parts:
        block, name = re.search(r"```sh\n(.*?)```.*images/(\w+\.png)", part, re.DOTALL).groups()
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        shown[name] = tuple(line.removeprefix("medvae3d ") for line in lines)
    assert shown == {name: commands for name, (commands, _) in gallery.FIGURES.items()}


@pytest.mark.parametrize("name", gallery.FIGURES)
def test_a_picture_is_small_and_shows_something(name):
    path = ROOT / "docs" / "images" / name
    assert path.stat().st_size < 150_000
    assert pixels(path).std() > 20


@pytest.mark.slow
@pytest.mark.timeout(1800)  # ten seconds of processor time each, more beside other work
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", gallery.FIGURES)
def test_the_script_makes_the_picture_again(name, tmp_path):
    made, kept = pixels(gallery.make(name, tmp_path)), pixels(ROOT / "docs" / "images" / name)
    assert made.shape == kept.shape
    assert share_that_differs(made, kept) < FEW


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("default")
def test_the_picture_of_the_demo_is_what_the_demo_makes(tmp_path):
    made, kept = pixels(demo.make(tmp_path / "demo.png")), pixels(demo.PICTURE)
    assert made.shape == kept.shape
    assert share_that_differs(made, kept) < FEW


def test_a_picture_of_another_seed_would_be_seen():
    kept = pixels(ROOT / "docs" / "images" / "gallery_petct.png")
    assert share_that_differs(kept, np.roll(kept, 12, axis=1)) > 5 * FEW


# The diagrams of the systems.

SHAPES = "{http://www.w3.org/2000/svg}"
LETTER = {13: 6.5, 11: 5.6}  # pixels, about


@pytest.mark.parametrize("name", system_names())
def test_the_page_of_a_system_shows_its_diagram_as_the_script_draws_it(name):
    listed = (ROOT / "docs" / "reference" / "systems.md").read_text(encoding="utf-8")
    (page,) = re.findall(rf"\[`{name}`\]\(\.\./concepts/([a-z]+\.md)", listed)
    text = (ROOT / "docs" / "concepts" / page).read_text(encoding="utf-8")
    assert f"](../images/model_{name}.svg)" in text
    stored = (ROOT / "docs" / "images" / f"model_{name}.svg").read_text(encoding="utf-8")
    assert stored == diagrams.diagram(name), "run python docs/gallery/diagrams.py"


@pytest.mark.parametrize("name", system_names())
def test_boxes_of_a_diagram_lie_apart_and_hold_their_words(name):
    root = tree.fromstring(diagrams.diagram(name))
    _, *boxes = (
        tuple(float(each.get(key, 0)) for key in ("x", "y", "width", "height"))
        for each in root.iter(f"{SHAPES}rect")
    )
    for number, (x, y, wide, high) in enumerate(boxes):
        for other_x, other_y, _, _ in boxes[:number]:
            assert abs(x - other_x) >= wide or abs(y - other_y) >= high
    for each in root.iter(f"{SHAPES}text"):
        x, y = float(each.get("x")), float(each.get("y"))
        half = LETTER[int(each.get("font-size"))] * len(each.text) / 2
        around = [b for b in boxes if b[0] <= x <= b[0] + b[2] and b[1] <= y <= b[1] + b[3]]
        assert all(x - half >= b[0] and x + half <= b[0] + b[2] for b in around), each.text


def words_of(name):
    return {each.text for each in tree.fromstring(diagrams.diagram(name)).iter(f"{SHAPES}text")}


@pytest.mark.parametrize("name", sorted(set(system_names()) - {"pavae"}))
def test_a_diagram_has_the_parts_of_the_network(name):
    """Those of the network that the system's settings name, built small."""
    facts, words = diagrams.facts_of(name), words_of(name)
    told = {"classes": ("a", "b")} if facts.classes else {"attributes": ("log_volume",)}
    vector = {"vector_latent": True} if facts.vector else {}
    model = getattr(zoo, facts.kind)(
        (8, 8, 8), channels=(4, 8), latent_channels=2, **({} if facts.codes else vector), **told
    )
    assert (type(model.flow).__name__ != "Identity") == any("flow" in each for each in words)
    assert (model.encoder is not None) == any("q(z" in each or "codes" in each for each in words)
    told_both = model.encode_attributes or model.context is not None
    assert told_both == ("q(z | x, m, c)" in words)
    assert ("Gaussian, a vector" in words) == (
        len(model.latent_shape) == 1 and facts.kind != "dcgan"
    )
    assert (model.conditional_prior is not None) == ("a network, p(z | c)" in words)


def test_diagrams_have_the_judges_that_are_trained():
    judged = {name for name in system_names() if "discriminator" in words_of(name)}
    assert judged == {"dcgan", "dhvae", "disc_vae", "pavae", "vae_gan", "vae_noise_gan"}
    again = "made volumes, which the encoder tells from real ones"
    introspective = {name for name in system_names() if again in words_of(name)}
    assert introspective == {"al_vae", "introvae", "soft_introvae"}
    assert {name for name in system_names() if "classifier" in words_of(name)} == {"icvae"}


# The page of the configurations.


def test_the_page_of_configurations_is_that_of_the_files():
    stored = configs.PAGE.read_text(encoding="utf-8")
    assert stored == configs.page(), "run python docs/gallery/configs.py"


def test_no_setting_is_explained_that_there_is_not():
    base = configs.read_base()
    assert set(configs.PARTS) <= set(base) and not set(configs.PARTS) & set(base["_desc_"])
    assert set(configs.NETWORK) == {name for name in base["network_def"] if name != "_target_"}
    assert {f"`{name}`" for name in base if name != "_desc_"} <= set(configs.page().split())
