"""Whether a latent tells a class: 0 and 1 where it should be, and it can be taken out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medvae3d.models.traces import Condition
from medvae3d.models.zoo import icvae
from medvae3d.networks.latent_classifier import LatentClassifier
from medvae3d.objectives.independence import Counterfactual, Tell, hsic, icvae_objective


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_latents_that_are_the_class_depend_on_it_wholly():
    classes = torch.arange(40) % 2
    far = 100.0 * classes[:, None].float().expand(-1, 3)
    far = far + 1e-3 * torch.randn(40, 3, generator=seeded())
    assert float(hsic(far, classes)) > 0.95


def test_latents_apart_from_the_class_hardly_depend_on_it():
    classes = torch.arange(200) % 2
    z = torch.randn(200, 4, generator=seeded())
    apart = float(hsic(z, classes))
    told = float(hsic(z + 2.0 * classes[:, None], classes))
    assert 0 <= apart < 0.05
    assert told > 5 * apart


def test_the_measure_does_not_know_the_unit_of_a_latent():
    classes = torch.arange(30) % 3
    z = torch.randn(30, 4, generator=seeded()) + classes[:, None]
    torch.testing.assert_close(hsic(z, classes), hsic(1000 * z, classes))


def test_one_class_alone_tells_nothing():
    z = torch.randn(8, 3, generator=seeded(), requires_grad=True)
    value = hsic(z, torch.zeros(8, dtype=torch.long))
    value.backward()
    assert float(value.detach()) == 0
    assert not z.grad.any()


def test_going_down_the_measure_takes_the_class_out_of_a_latent():
    classes = torch.arange(64) % 2
    first = torch.randn(64, 2, generator=seeded()) + 2.0 * classes[:, None]
    shift = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.Adam([shift], lr=0.05)
    before = float(hsic(first, classes))
    for _ in range(150):
        optimizer.zero_grad()
        hsic(first + shift[classes], classes).backward()
        optimizer.step()
    assert float(hsic(first + shift[classes], classes).detach()) < 0.1 * before


CLASSES = ("dark", "bright")


@pytest.fixture
def told():
    """A small model that is told two classes, a batch of its cases, and what one pass gives."""
    torch.manual_seed(0)
    model = icvae((4, 4, 4), classes=CLASSES, channels=(4,), latent_channels=3, vector_latent=True,
                  components=0)  # fmt: skip
    classes = torch.eye(2)[torch.tensor([0, 1, 1, 0, 0])]
    model.statistics.fit_attributes(classes)
    with torch.no_grad():  # the class changes nothing in what has not been trained
        for part in (model.embedding, model.decoder):
            for weight in part.parameters():
                weight += 0.2 * torch.randn(weight.shape, generator=seeded(4))
    batch = {
        "image": torch.randn(5, 1, 4, 4, 4, generator=seeded(1)),
        "mask": (torch.rand(5, 1, 4, 4, 4, generator=seeded(2)) > 0.7).to(torch.uint8),
        "attributes": model.statistics.standardise(classes),
    }
    return model, batch, model.trace(batch, seeded(3))


def test_a_case_drawn_as_the_other_class_has_to_keep_its_latent(told):
    model, batch, trace = told
    other = Condition(model.statistics.standardise(torch.eye(2)[[1, 0, 0, 1, 1]]))
    one, two = (model.decode(trace.first_z, each) for each in (trace.condition, other))
    shifted = batch["image"] + two["image"].mode() - one["image"].mode()
    mask = torch.where(one["mask"].mode() == two["mask"].mode(), batch["mask"], two["mask"].mode())
    assert float((shifted - batch["image"]).detach().abs().mean()) > 1e-4
    posterior = model.encode({**batch, "image": shifted, "mask": mask}, other)
    found = Counterfactual(model)(trace, batch)
    torch.testing.assert_close(found, -posterior.log_prob(trace.first_z))


def test_that_teaches_the_encoder_alone(told):
    model, batch, trace = told
    Counterfactual(model)(trace, batch).sum().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(p.grad is None for p in model.decoder.parameters())


def test_what_is_not_observed_does_not_reach_a_case_drawn_as_another_class(told):
    model, batch, _ = told
    valid = torch.ones(5, 1, 4, 4, 4)
    valid[:, :, 0] = 0
    image = batch["image"].clone()
    image[:, :, 0] = torch.nan
    holes = {**batch, "image": image, "valid": valid}
    trace = model.trace(holes, seeded(3))
    assert Counterfactual(model)(trace, holes).isfinite().all()


def test_a_classifier_that_knows_the_frequencies_alone_tells_nothing(told):
    model, batch, trace = told
    classifier = LatentClassifier(model.latent_shape, 2)
    last = classifier.body[-1]
    nn.init.zeros_(last.weight)
    # Three of five cases are of the first class.
    last.bias.data = torch.tensor([0.6, 0.4]).log()
    tells = Tell(model, classifier)
    torch.testing.assert_close(tells(trace, batch), torch.zeros(5))
    last.bias.data = torch.tensor([0.9, 0.1]).log()
    expected = 0.6 * math.log(0.6 / 0.9) + 0.4 * math.log(0.4 / 0.1)
    torch.testing.assert_close(tells(trace, batch), torch.full((5,), expected))
    nn.init.normal_(last.weight)
    tells(trace, batch).sum().backward()
    assert all(p.grad is None for p in classifier.parameters())
    assert any(bool(p.grad.any()) for p in model.encoder.parameters())


def test_the_objective_has_the_terms_that_weigh_something(told):
    model, _, _ = told
    names = {
        (0.0, 0.0): ["nll", "kl"],
        (1.0, 0.0): ["nll", "kl", "independence"],
        (0.0, 2.0): ["nll", "kl", "counterfactual"],
    }
    for (independence, counterfactual), expected in names.items():
        made = icvae_objective(model, independence=independence, counterfactual=counterfactual)
        assert [term.name for term in made.terms] == expected
