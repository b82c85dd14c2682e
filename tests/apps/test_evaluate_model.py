"""Claims about reports on the samples of a bundle that is at hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny_bundles as tiny
import torch

from medvae3d.apps import evaluate_model, evaluate_sections
from medvae3d.apps.bundle import load_bundle
from medvae3d.apps.evaluate import evaluate
from medvae3d.apps.evaluate_model import BundleModel
from medvae3d.errors import SettingError
from medvae3d.evaluation.sections import Section


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny bundle and two folders of its samples."""
    root = tmp_path_factory.mktemp("model")
    bundle = tiny.write_bundle(root / "bundle")
    folders = [root / f"seed{seed}" for seed in (1, 2)]
    for seed, folder in enumerate(folders):
        load_bundle(bundle).write(folder, 3, seed, preview=False)
    return bundle, *folders


def test_the_bundle_sees_its_samples_as_it_made_them(made, monkeypatch):
    root, first, second = made
    seen = []

    def look(judged):
        seen.append(judged)
        return Section("look", "Look")

    monkeypatch.setattr(evaluate_sections, "SECTIONS", {"look": look})
    found = evaluate(first, second, bundle=root)
    (judged,) = seen
    assert judged.frame.spacing_mm == tiny.SPACING and judged.frame.shape == (tiny.SIDE,) * 3
    assert judged.frame.channels == ("PET", "CT")
    assert found["settings"]["bundle"] == "bundle 1.2.0"
    bundle = load_bundle(root)
    drawn = [sample for sample in bundle.generate(3, 0)]
    native = torch.stack([sample.image for sample in drawn])
    wanted = torch.stack([bundle.recipe.intensities.normalize(image) for image in native])
    assert torch.allclose(judged.real.image, wanted, atol=0.02), "up to the steps of the file"


def test_latents_and_likelihoods_are_those_of_the_network(made):
    root, first, second = made
    model = BundleModel.load(root, seed=5)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evaluate_sections,
            "SECTIONS",
            {"look": lambda judged: found.update(cases=judged.real) or Section("look", "Look")},
        )
        evaluate(first, second, bundle=root)
    cases = found["cases"]
    latents, bounds = model.encode(cases), model.log_likelihood(cases)
    for row in range(len(cases)):
        one = cases[row : row + 1]
        batch = one.batch(model.bundle.statistics, tiny.SPACING)
        with torch.no_grad():
            posterior = model.network.encode(batch, model.network.condition(batch))
        assert torch.allclose(latents[row], posterior.mean.flatten(), atol=1e-4)
    assert torch.equal(bounds, model.log_likelihood(cases))
    noise = cases[:]
    noise.image[:] = torch.rand(noise.image.shape, generator=torch.Generator().manual_seed(0))
    assert bounds.min() > model.log_likelihood(noise).max(), "noise is no sample"


def test_a_model_of_images_around_masks_is_refused(monkeypatch):
    two = SimpleNamespace(
        name="two", network=torch.nn.Identity(), recipe=tiny.recipe(tiny.TWO_STAGE)
    )
    monkeypatch.setattr(evaluate_model, "load_bundle", lambda name: two)
    with pytest.raises(SettingError, match="models the image around a given mask"):
        BundleModel.load("two")
