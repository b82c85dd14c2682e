"""Introspective objectives against their equations, and where their gradients stop."""

from __future__ import annotations

import math

import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.models.zoo import hvae, latent_model, vae
from medvae3d.objectives.introspective import (
    HingeIntrospection,
    Introspection,
    Seen,
    SoftIntrospection,
    introspect,
    require_introspective,
)

SHAPE = (8, 8, 8)


def model(**sizes):
    torch.manual_seed(0)
    return vae(SHAPE, **{"channels": (4, 8), "latent_channels": 2, "components": 0, **sizes})


def batch(count=2, values=(0, 1)):
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(len(values), (count, 1, *SHAPE), generator=generator)
    image = torch.randn(count, 1, *SHAPE, generator=generator)
    return {"image": image, "mask": torch.tensor(values)[label].float()}


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def numbers(kl, error, made=()):
    tensors = lambda pair: Seen(*(torch.tensor([float(v)]) for v in pair))
    names = ("rebuilt", "sampled")
    return Introspection(
        tensors((kl, error)),
        {name: tensors(pair) for name, pair in zip(names, made, strict=False)},
        torch.tensor(10.0),
        None,
    )


def gradients(value, module):
    return torch.autograd.grad(
        value, list(module.parameters()), retain_graph=True, allow_unused=True
    )


def reaches(value, module):
    if not value.requires_grad:
        return False
    return any(g is not None and bool(g.abs().sum() > 0) for g in gradients(value, module))


SEEN = numbers(3, 20, made=((4, 30), (5, 40)))


def test_soft_losses_are_their_equations():
    soft = SoftIntrospection(beta_rec=0.5, beta_kl=2, beta_neg=6, gamma=0.1)
    exponents = [-0.2 * (0.5 * error + 6 * kl) for kl, error in ((4, 30), (5, 40))]
    encoder = 0.1 * (0.5 * 20 + 2 * 3) + 0.25 * sum(math.exp(e) for e in exponents)
    assert soft.encoder_loss(SEEN).item() == pytest.approx(encoder)
    decoder = 0.1 * (0.5 * 20 + 0.5 * 2 * (4 + 5) + 0.5 * 0.1 * 0.5 * (30 + 40))
    assert soft.decoder_loss(SEEN).item() == pytest.approx(decoder)


def test_hinge_losses_are_their_equations():
    hinge = HingeIntrospection(margin=4.5, w_rec=0.05, w_kl=2, w_neg=0.5, rests=False)
    assert hinge.encoder_loss(SEEN).item() == pytest.approx(
        0.05 * 20 + 2 * (3 + 0.5 * 0.5 * (4.5 - 4 + 0))
    )
    assert hinge.decoder_loss(SEEN).item() == pytest.approx(0.05 * 20 + 0.5 * 2 * (4 + 5))


def test_without_made_volumes_the_encoder_has_the_bound_of_a_beta_vae():
    bound = 0.5 * 20 + 2 * 3
    alone = numbers(3, 20)
    assert SoftIntrospection(0.5, 2).encoder_loss(alone).item() == pytest.approx(bound / 10)
    assert HingeIntrospection(9, w_rec=0.5, w_kl=2).encoder_loss(alone).item() == pytest.approx(
        bound
    )
    # ... and so has the one that ignores them.
    assert HingeIntrospection(9, w_rec=0.5, w_kl=2, w_neg=0).encoder_loss(
        SEEN
    ).item() == pytest.approx(bound)


def sized(seen, size):
    return Introspection(seen.real, seen.made, torch.tensor(float(size)), None)


@pytest.mark.parametrize(
    ("size", "beta_neg"),
    [(784, 256), (3072, 256), (49152, 256), (3 * 256**2, 1024), (10 * 3 * 256**2, 10240)],
)
def test_by_default_the_divergence_is_weighed_as_published_for_images_of_that_size(size, beta_neg):
    """The first four are those of MNIST, CIFAR, Monsters and CelebA; the last is a volume."""
    seen = sized(numbers(1, 0, [(6, 0)]), size)
    found = SoftIntrospection().exponents(seen)["rebuilt"].item()
    assert found == pytest.approx(-2 * 6 * beta_neg / size)


def test_by_default_the_margin_follows_the_divergence_of_real_volumes_without_a_gradient():
    kl = torch.tensor([2.0, 4.0], requires_grad=True)
    made = Seen(torch.tensor([1.0, 4.0]), torch.zeros(2))
    seen = Introspection(Seen(kl, torch.zeros(2)), {"sampled": made}, torch.tensor(10.0), None)
    hinge = HingeIntrospection(margin_ratio=1.5)
    assert hinge.margin_for(seen).item() == pytest.approx(4.5)
    assert hinge.report(seen)["margin"] == hinge.margin_for(seen)
    loss = hinge.encoder_loss(seen)
    assert loss.item() == pytest.approx(3 + 0.25 * (3.5 + 0.5) / 2)
    (slope,) = torch.autograd.grad(loss, kl)
    assert slope.tolist() == [0.5, 0.5], "that of the mean divergence alone"


def test_a_sharpness_that_follows_pushes_with_half_of_what_draws_where_made_equals_real():
    """Gradients of the encoder by the divergence of real volumes and of both made ones."""
    kls = [torch.tensor([30.0], requires_grad=True) for _ in range(3)]
    real, *made = (Seen(kl, torch.zeros(1)) for kl in kls)
    made = dict(zip(("rebuilt", "sampled"), made, strict=True))
    seen = Introspection(real, made, torch.tensor(3456.0), None)
    soft = SoftIntrospection(beta_kl=2, beta_neg=8, alpha=None)
    draw, *push = torch.autograd.grad(soft.encoder_loss(seen), kls)
    assert draw.item() == pytest.approx(2 / 3456)
    assert sum(push).item() == pytest.approx(-0.5 * draw.item(), rel=1e-5)
    for exponent in soft.exponents(seen).values():
        assert exponent.item() == pytest.approx(-math.log(2 * 8 / 2), rel=1e-5)


def test_the_range_of_exponents_is_reported():
    soft = SoftIntrospection(beta_neg=1)
    report, exponents = soft.report(SEEN), soft.exponents(SEEN)
    both = sorted(float(value) for value in exponents.values())
    assert [float(report["exponent_low"]), float(report["exponent_high"])] == both
    assert float(report["kl_rebuilt"]) == 4 and float(report["kl_sampled"]) == 5


def test_a_divergence_above_the_margin_has_no_gradient():
    def slope(value):
        kl = torch.tensor([value], requires_grad=True)
        seen = Introspection(SEEN.real, {"sampled": Seen(kl, kl * 0)}, SEEN.size, None)
        HingeIntrospection(margin=5).encoder_loss(seen).backward()
        return kl.grad.item()

    assert slope(6.0) == 0
    assert slope(4.0) == pytest.approx(-0.25)


@pytest.mark.parametrize("name", ["rebuilt", "sampled"])
def test_divergences_of_made_volumes_do_not_reach_the_decoder_in_the_turn_of_the_encoder(name):
    network = model()
    made = introspect(network, batch(), seeded(), "encoder").made[name]
    assert not reaches(made.kl.sum(), network.decoder)
    assert reaches(made.kl.sum(), network.encoder)


def test_the_decoder_rests_where_what_it_made_looks_as_real_as_real_volumes():
    real, *made = (torch.tensor([kl, kl + 2], requires_grad=True) for kl in (3.0, 1.0, 3.5))
    seen = Introspection(
        Seen(real, torch.zeros(2)),
        {name: Seen(kl, kl * 0) for name, kl in zip(("rebuilt", "sampled"), made, strict=True)},
        SEEN.size,
        None,
    )
    for rests, slopes in ((True, [[0, 0], [0, 0.25]]), (False, [[0.25, 0.25], [0.25, 0.25]])):
        loss = HingeIntrospection(rests=rests).decoder_loss(seen)
        found = torch.autograd.grad(loss, [*made, real], allow_unused=True)
        assert [g.tolist() for g in found[:2]] == slopes, "real volumes look like 4 nats"
        assert found[2] is None, "and are not drawn towards what was made"


@pytest.mark.parametrize("name", ["rebuilt", "sampled"])
def test_the_decoder_learns_from_the_divergence_of_what_it_made(name):
    network = model()
    made = introspect(network, batch(), seeded(), "decoder").made[name]
    assert reaches(made.kl.sum(), network.decoder)
    # The way of the error to the decoder is its own reconstruction alone.
    with_graph = gradients(made.error.sum(), network.encoder)
    assert all(g is None for g in with_graph)


def test_both_image_and_mask_of_a_made_volume_are_judged():
    network = model()
    kl = introspect(network, batch(), seeded(), "decoder").made["sampled"].kl.sum()
    weight = network.decoder.output.conv.weight
    (gradient,) = torch.autograd.grad(kl, weight)
    repeats = math.prod(network.decoder.output.stride)
    assert gradient[:repeats].abs().sum() > 0
    assert gradient[repeats : 2 * repeats].abs().sum() > 0


def test_a_made_volume_that_equals_a_real_one_is_read_alike():
    network, real = model(), batch()
    condition = network.condition(real)
    soft = {**real, "mask": 0 * real["mask"], "mask_probability": real["mask"]}
    first, again = (network.encode(each, condition) for each in (real, soft))
    assert torch.equal(first.mean, again.mean)


def test_what_was_not_observed_is_hidden_of_made_volumes_too():
    network = model()
    real = {**batch(), "valid": torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1, 1)}
    other = {**real, "image": real["image"].clone()}
    other["image"][1] = 5
    for role in ("encoder", "decoder"):
        first, again = (introspect(network, each, seeded(), role) for each in (real, other))
        for name in first.made:
            assert torch.equal(first.made[name].kl, again.made[name].kl)
        assert torch.equal(first.real.error, again.real.error)


def test_several_labels_are_one_channel_each():
    values = (0, 1, 2)
    network = model(values=values)
    seen = introspect(network, batch(values=values), seeded(), "decoder")
    assert seen.made["sampled"].kl.shape == (2,)
    assert reaches(seen.made["sampled"].kl.sum(), network.decoder)


def test_the_same_generator_sees_the_same():
    first, again = (introspect(model(), batch(), seeded(), "encoder") for _ in range(2))
    assert torch.equal(first.made["sampled"].error, again.made["sampled"].error)


def test_errors_of_made_volumes_are_left_out_where_nobody_reads_them():
    seen = introspect(model(), batch(), seeded(), "encoder", rebuild_made=False)
    assert all(not each.error.any() for each in seen.made.values())
    assert introspect(model(), batch(), seeded(), "encoder", with_made=False).made == {}


def test_models_whose_encoder_could_tell_by_other_means_are_refused():
    sizes = {"channels": (4, 8), "latent_channels": 2, "components": 0}
    with pytest.raises(SettingError, match="flow HamiltonianFlow"):
        require_introspective(hvae(SHAPE, **sizes))
    with pytest.raises(SettingError, match="mask_dropout"):
        require_introspective(vae(SHAPE, mask_dropout=0.1, **sizes))
    with pytest.raises(SettingError, match="reads"):
        require_introspective(latent_model(SHAPE, heads=("image",), **sizes))
    with pytest.raises(SettingError, match="margin"):
        HingeIntrospection(margin=0)
    with pytest.raises(SettingError, match="margin_ratio"):
        HingeIntrospection(margin_ratio=1.0)
    with pytest.raises(SettingError, match="judge"):
        introspect(model(), batch(), None, "judge")
