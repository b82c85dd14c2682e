"""The latent model: what a pass is made of, and what the named models are."""

import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.flows import HamiltonianFlow
from medvae3d.models.latent import Condition, LatentModel
from medvae3d.models.zoo import hvae, pavae, vae
from medvae3d.objectives.compositions import joint_objective
from medvae3d.objectives.terms import elbo, head_nll, nll, one_sample_kl
from medvae3d.probability import DiagonalGaussian, PointMass, StandardNormal

SIZES = {"channels": (4, 8), "latent_channels": 2, "components": 2, "rank": 4}


def batch_of(shape=(8, 8, 8), channels=2, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, channels, *shape, generator=generator).clamp(-1, 1)
    mask = torch.zeros(count, 1, *shape)
    mask[:, :, 2:5, 2:6, 3:6] = 1
    return {"image": image, "mask": mask}


def joint(make=vae, **options):
    torch.manual_seed(0)
    return make((8, 8, 8), image_channels=2, **{**SIZES, **options})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_tensor_of_a_model_is_in_its_state():
    for model in (joint(), joint(hvae), pavae((8, 8, 8), (8, 8, 8), shape=SIZES, texture=SIZES)):
        names = set(model.state_dict())
        for path, module in model.named_modules():
            for name, value in vars(module).items():
                assert not isinstance(value, torch.Tensor), f"{path}.{name} is lost on saving"
        assert {name for name, _ in model.named_buffers()} <= names


def test_evaluation_is_deterministic_and_shows_the_mean_of_the_posterior():
    model = joint().eval()
    batch = batch_of()
    torch.testing.assert_close(model(batch["image"]), model(batch["image"]))
    condition = model.condition({"image": batch["image"]})
    posterior = model.encode({"image": batch["image"]}, condition)
    made = model.decode(posterior.mean, condition)
    torch.testing.assert_close(model(batch["image"])[:, 1:], made["image"].mode())


def test_image_and_mask_are_independent_given_the_latent():
    """Zeroing the mask's logits changes the mask term and nothing else."""
    model, batch = joint(), batch_of()
    trace = model.trace(batch, generator())
    total = head_nll(trace, batch, "image") + head_nll(trace, batch, "mask")
    torch.testing.assert_close(nll(trace, batch), total)


def test_a_flow_without_steps_is_the_plain_model():
    plain, flowing = joint(vae), joint(hvae, num_steps=0)
    flowing.load_state_dict(plain.state_dict(), strict=False)
    batch = batch_of()
    one = elbo(plain.trace(batch, generator()), batch)
    other = elbo(flowing.trace(batch, generator()), batch)
    torch.testing.assert_close(one, other)


def test_the_bound_of_a_sample_does_not_depend_on_its_batch():
    model, batch = joint().eval(), batch_of()
    with torch.no_grad():
        z = model.encode(batch, model.condition(batch)).mean
        whole = model.log_joint(z, batch, model.condition(batch))
        part = {key: value[1:2] for key, value in batch.items()}
        alone = model.log_joint(z[1:2], part, model.condition(part))
    torch.testing.assert_close(whole[1:2], alone)


def test_what_was_not_observed_counts_nowhere():
    model, batch = joint(), batch_of()
    batch["valid"] = torch.ones_like(batch["image"][:, :1])
    batch["valid"][..., 4:] = 0
    other = dict(batch, image=batch["image"].clone())
    other["image"][..., 4:] = 100.0
    one = elbo(model.trace(batch, generator()), batch)
    torch.testing.assert_close(one, elbo(model.trace(other, generator()), other))


def test_a_missing_mask_is_another_input_than_an_empty_one():
    model, batch = joint(), batch_of()
    empty = dict(batch, mask=torch.zeros_like(batch["mask"]))
    without = {"image": batch["image"]}
    seen = model.encoder_input(empty, Condition())
    unseen = model.encoder_input(without, Condition())
    assert not torch.equal(seen, unseen)


def test_alpha_zero_is_the_bound_and_nothing_else():
    model, batch = joint(), batch_of()
    trace = model.trace(batch, generator())
    loss, _ = joint_objective(alpha=0.0)(trace, batch, step=10)
    voxels = batch["image"][0].numel() + batch["mask"][0].numel()
    torch.testing.assert_close(loss, -elbo(trace, batch).mean() / voxels)


def test_the_flow_runs_in_float32_under_autocast():
    model, batch = joint(hvae, num_steps=1, flow_autocast=True), batch_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = model.trace(batch, generator())
    assert trace.flowed.z.dtype == trace.flowed.log_weight.dtype == torch.float32
    assert elbo(trace, batch).dtype == torch.float32


class Listener(HamiltonianFlow):
    """A flow that keeps what it is handed."""

    reads_encoder = True

    def forward(self, z, potential, generator=None, **told):
        self.told = told
        return super().forward(z, potential, generator)


class Deaf(HamiltonianFlow):
    def forward(self, z, potential, generator=None, **told):
        assert not told
        return super().forward(z, potential, generator)


def test_a_flow_is_handed_what_the_encoder_saw_if_it_asks():
    model, batch = joint(), {**batch_of(), "case": ["a", "b", "c"]}
    model.flow = Listener(1, 0.01)
    trace = model.trace(batch, generator())
    told = model.flow.told
    assert told["cases"] == ["a", "b", "c"]
    assert torch.equal(told["mean"], trace.posterior.mean)
    posterior = DiagonalGaussian.from_features(model.encoder.head(told["features"]))
    assert torch.equal(posterior.scale, trace.posterior.scale)
    model.flow = Deaf(1, 0.01)
    model.trace(batch, generator())


def test_samples_depend_on_their_own_generator_only():
    model = joint()
    together = model.sample_latent(3, generators=[generator(i) for i in range(3)])
    alone = model.sample_latent(1, generators=[generator(2)])
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=0)


def test_the_latent_scale_is_undone_on_sampling():
    model = joint()
    before = model.sample_latent(1, generators=[generator()])
    model.latent_scale.fill_(2.0)
    torch.testing.assert_close(model.sample_latent(1, generators=[generator()]), before / 2)


def test_a_model_of_masks_alone_does_not_take_an_image():
    model = pavae((8, 8, 8), (8, 8, 8), shape=SIZES, texture=SIZES)
    with pytest.raises(SettingError, match="joint"):
        model.shape(torch.zeros(1, 1, 8, 8, 8))


def test_the_pair_puts_a_lesion_into_the_middle_of_any_volume():
    model = pavae((8, 8, 8), (8, 8, 8), image_channels=2, shape=SIZES, texture=SIZES).eval()
    out = model(torch.randn(1, 2, 12, 16, 8))
    assert out.shape == (1, 3, 12, 16, 8)
    assert out[0, 0, 0].max() < 0  # outside of the mask's own window there is none


def test_a_model_without_an_encoder_decodes_and_says_so_when_asked_to_read():
    whole = joint(components=0)
    model = LatentModel(None, whole.decoder, dict(whole.heads), whole.latent_shape)
    model.image_channels = 2
    made = model.decode(model.sample_latent(2, generators=generator()), Condition())
    assert made["image"].mode().shape == (2, 2, 8, 8, 8)
    with pytest.raises(SettingError, match="no encoder"):
        model.trace(batch_of(), generator())
    volume = model(batch_of()["image"])
    middle = model.decode(torch.zeros(3, *model.latent_shape), Condition())
    torch.testing.assert_close(volume[:, 1:], middle["image"].mode())


def test_another_posterior_and_another_prior_take_their_places():
    class Wide(StandardNormal):
        def log_prob(self, z, attributes=None):
            return super().log_prob(z) - 7.0

    whole = joint(components=0)
    model = LatentModel(
        whole.encoder,
        whole.decoder,
        dict(whole.heads),
        whole.latent_shape,
        image_channels=2,
        posterior=lambda features: PointMass(features.chunk(2, dim=1)[0]),
        prior=Wide(whole.latent_shape),
    )
    batch = batch_of()
    trace = model.trace(batch, generator())
    assert torch.equal(trace.first_z, trace.posterior.mean)
    expected = 7.0 - StandardNormal().log_prob(trace.first_z)
    torch.testing.assert_close(one_sample_kl(trace, batch), expected)
    assert "prior.location" in model.state_dict()


def test_an_exact_flow_decodes_its_end_once_and_teaches_the_same():
    """As many decodings as gradients, and the gradients of a loss on a decoding of its own."""
    model, batch = joint(hvae, num_steps=2, flow_autocast=True).train(), batch_of()
    seen = []
    model.decoder.register_forward_hook(lambda *_: seen.append(1))
    trace = model.trace(batch, generator())
    assert len(seen) == trace.flowed.num_gradients == 3
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for heads in (trace.heads, model.decode(trace.flowed.z, trace.condition)):
        loss = -model.log_likelihood(heads, batch).sum() - trace.flowed.log_weight.sum()
        gradients.append(
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        )
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            scale = float(other.abs().max())  # of sums over thousands of voxels in float32
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * scale)


def test_without_the_graph_of_its_force_a_flow_decodes_its_end_anew():
    model, batch = joint(hvae, num_steps=2, first_order=True).train(), batch_of()
    seen = []
    model.decoder.register_forward_hook(lambda *_: seen.append(1))
    trace = model.trace(batch, generator())
    assert len(seen) == trace.flowed.num_gradients + 1
