r"""The one latent model that the named models are compositions of.

A volume :math:`x` and its mask :math:`m` come from one latent :math:`z`, under a condition
:math:`c`:

.. math:: p(x, m, z \mid c) = p(z \mid c)\, p(x \mid z, c)\, p(m \mid z, c)

The prior :math:`p(z \mid c)` is the standard normal unless a network of its own makes it of the
condition.

An encoder gives :math:`q(z_0 \mid x, m, c)`, a flow carries :math:`z_0` to :math:`z_K` against the
potential :math:`U(z) = -\log p(x, m, z \mid c)`, and a decoder with one head per output gives the
distributions of image and mask. With the identity as the flow, this is a VAE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medvae3d.errors import SettingError
from medvae3d.flows.hamiltonian import Identity
from medvae3d.models.grain import Grain
from medvae3d.models.potentials import Potential
from medvae3d.models.seen import stacked
from medvae3d.models.starting import start_gently
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.models.traces import Batch, BoundPrior, Condition, Trace
from medvae3d.networks.autoencoders import Decoder, Encoder
from medvae3d.networks.conditioning import AttributeEmbedding, coin
from medvae3d.numerics import standard_normal
from medvae3d.probability.posteriors import DiagonalGaussian, Posterior
from medvae3d.probability.priors import FittedPrior, Prior, StandardNormal

__all__ = ["Batch", "BoundPrior", "Condition", "LatentModel", "Trace"]


class LatentModel(nn.Module):
    r"""Encoder, flow, prior and decoder with heads.

    A batch holds, as far as the model is told to read them:

    - ``image``: :math:`(B, C, I, J, K)`, normalised; ``valid``: :math:`(B, C, 1, 1, 1)` or larger,
      0 where a channel was not observed; what the image holds there, be it NaN, is never read
    - ``mask``: :math:`(B, 1, I, J, K)`, integer label values; ``mask_valid``:
      :math:`(B, 1, 1, 1, 1)`, 0 where it was not observed
    - ``mask_probability``: :math:`(B, N - 1, I, J, K)`, what the encoder reads in place of ``mask``
      if it is there: the probability of each label but background, as a decoder makes them
    - ``attributes``: :math:`(B, F)`, standardised; those of a name ``class:NAME`` say of which
      class a case is

    Args:
        encoder: Input of `input_channels` channels to posterior features; ``None`` for a model that
            makes volumes and reads none, such as the generator of a GAN.
        decoder: Latent to head features.
        heads: One head per output; the keys ``image`` and ``mask`` name the entry of the batch.
        latent_shape: Shape of one latent, :math:`(L, i, j, k)` or :math:`(L,)`.
        inputs: What the encoder reads, ``image``, ``mask`` or both.
        values: Label values of the mask, background first.
        image_channels: Channels :math:`C` of the image.
        flow: Moves the latent against the potential; the identity by default. A flow with
            ``reads_encoder`` is also handed the encoder's ``features``, the ``mean`` of the
            posterior and the names of the ``cases``.
        posterior: Turns features of the encoder into a posterior; a module if it has a state of its
            own, such as a codebook. A diagonal Gaussian by default.
        prior: What the latent is trained against; the standard normal by default.
        sampling_prior: Prior to sample from, fitted after training; ``prior`` if there is none.
        embedding: Embeds the attributes, if the networks are conditioned on them.
        encode_attributes: Whether the encoder sees the attributes too.
        context: Builds condition maps from mask and image, if the decoder is told them.
        conditional_prior: Makes :math:`p(z \mid c)` of a `Condition`, a `DiagonalGaussian`; the
            prior is the standard normal without one.
        label_dropout: Share of training samples that are told no class, so that the model is also
            one without classes.
        channel_dropout: Share of the channels of training images that the encoder does not see,
            though the decoder has to make them; never all of an image.
        mask_dropout: Share of training samples whose mask the encoder does not see.
        flow_autocast: Whether convolutions inside the potential may run in reduced precision;
            densities, momenta and positions stay in float32 either way.
        statistics: What is remembered of the training set.
        coarse_heads: Heads of the decoder's outputs at lower resolution, coarsest first.
        grain: What the decoder leaves out of an image, if it is to be drawn.
    """

    latent_scale: Tensor

    def __init__(
        self,
        encoder: Encoder | None,
        decoder: Decoder,
        heads: Mapping[str, nn.Module],
        latent_shape: Sequence[int],
        *,
        inputs: Sequence[str] = ("image", "mask"),
        values: Sequence[int] = (0, 1),
        image_channels: int = 1,
        flow: nn.Module | None = None,
        posterior: Callable[[Tensor], Posterior] | None = None,
        prior: Prior | None = None,
        sampling_prior: FittedPrior | None = None,
        embedding: AttributeEmbedding | None = None,
        encode_attributes: bool = False,
        context: nn.Module | None = None,
        conditional_prior: nn.Module | None = None,
        label_dropout: float = 0.0,
        channel_dropout: float = 0.0,
        mask_dropout: float = 0.0,
        flow_autocast: bool = False,
        statistics: TrainingStatistics | None = None,
        grain: Grain | None = None,
        coarse_heads: Sequence[Mapping[str, nn.Module]] = (),
    ) -> None:
        super().__init__()
        self.statistics = statistics if statistics is not None else TrainingStatistics()
        self.encoder = encoder
        self.decoder = decoder
        self.heads = nn.ModuleDict(heads)
        self.latent_shape = tuple(latent_shape)
        self.inputs = tuple(inputs)
        self.values = tuple(values)
        self.image_channels = image_channels
        self.flow = flow if flow is not None else Identity()
        self.posterior = posterior if posterior is not None else DiagonalGaussian.from_features
        self.prior: Prior = prior if prior is not None else StandardNormal(self.latent_shape)
        self.sampling_prior = sampling_prior
        self.embedding = embedding
        self.encode_attributes = encode_attributes
        self.context = context
        self.conditional_prior = conditional_prior
        self.label_dropout = label_dropout
        self.channel_dropout = channel_dropout
        self.mask_dropout = mask_dropout
        self.flow_autocast = flow_autocast
        self.grain = grain
        self.coarse_heads = nn.ModuleList(nn.ModuleDict(each) for each in coarse_heads)
        self.register_buffer("latent_scale", torch.ones(()))
        start_gently(encoder, decoder, self.heads, self.coarse_heads)  # type: ignore[arg-type]

    @property
    def is_told_mask(self) -> bool:
        """Whether its prior draws latents of volumes with a given mask."""
        return bool(getattr(self.sampling_prior, "values", ()))

    @property
    def is_local(self) -> bool:
        """Whether the latent is a map, so that volumes of any size can be made tile by tile."""
        return len(self.latent_shape) == 4

    # -- what the networks read ---------------------------------------------------------------

    def condition(self, batch: Batch, generator: torch.Generator | None = None) -> Condition:
        """Collects what the model is told; drops the context of some samples while training."""
        maps = region = None
        if self.context is not None:
            maps, region = self.context.collect(batch, generator)  # type: ignore[operator]
        attributes = batch.get("attributes")
        if self.training and self.label_dropout and attributes is not None:
            keep = coin(1 - self.label_dropout, attributes, generator)
            attributes = torch.where(
                keep[:, None] > 0, attributes, self.statistics.without_class(attributes)
            )
        return Condition(attributes, maps, region)

    def blank(
        self,
        count: int,
        shape: Sequence[int],
        attributes: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Condition:
        """The condition of volumes of which nothing but attributes is known.

        Models that are told of a region alone have one; those that paint around a given mask do
        not.
        """
        nothing = getattr(self.context, "nothing", None)
        return Condition(attributes, None if nothing is None else nothing(count, shape, device))

    def prior_given(self, condition: Condition) -> BoundPrior:
        """The prior of a latent under a condition."""
        if self.conditional_prior is None:
            return self.prior
        bound: BoundPrior = self.conditional_prior(condition)
        return bound

    def vector_of(self, condition: Condition, like: Tensor) -> Tensor | None:
        if self.embedding is None:
            return None
        attributes = condition.attributes
        if attributes is None:  # the mean of the training set
            attributes = like.new_zeros(len(like), self.embedding.attributes)
        return self.embedding(attributes.float())

    def encoder_input(
        self,
        batch: Batch,
        condition: Condition,
        generator: torch.Generator | None = None,
        *,
        hiding: bool = True,
    ) -> Tensor:
        """Stacks what the encoder reads, with a channel that says what was observed.

        Args:
            batch: See the class.
            condition: What the model is told.
            generator: Source of what is hidden.
            hiding: Whether, while training, channels and masks are hidden at random.
        """
        hiding = hiding and self.training
        return stacked(
            batch,
            condition.maps,
            self.inputs,
            self.values,
            channel_dropout=self.channel_dropout if hiding else 0.0,
            mask_dropout=self.mask_dropout if hiding else 0.0,
            generator=generator,
        )

    # -- the parts of a pass ------------------------------------------------------------------

    def encode(
        self, batch: Batch, condition: Condition, generator: torch.Generator | None = None
    ) -> Posterior:
        """Gives the posterior of the first latent."""
        return self.read(batch, condition, generator)[1]

    def read(
        self, batch: Batch, condition: Condition, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Posterior]:
        """Gives the encoder's last feature map, ``(B, W, i, j, k)``, and the posterior.

        Raises:
            SettingError: If the model has no encoder.
        """
        return self.read_input(self.encoder_input(batch, condition, generator), condition)

    def read_input(self, x: Tensor, condition: Condition) -> tuple[Tensor, Posterior]:
        """The same from what the encoder reads, as `encoder_input` stacks it."""
        features, parameters = self.encoded(x, condition)
        return features, self.posterior(parameters)

    def encoded(self, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """The encoder's last feature map, and what its head makes a posterior's features of it."""
        if self.encoder is None:
            raise SettingError(
                "this model has no encoder: it makes volumes from noise and cannot read or rebuild "
                "one. Ask it for samples, or take a model with an encoder, such as "
                "`medvae3d.models.zoo.vae`."
            )
        vector = self.vector_of(condition, x) if self.encode_attributes else None
        features = self.encoder.features(x, vector)
        return features, self.encoder.head(features)

    def decode(self, z: Tensor, condition: Condition) -> dict[str, Any]:
        """Gives one distribution per head."""
        return self.distributions(self.decoder(z, self.vector_of(condition, z), condition.maps))

    def distributions(self, features: Tensor) -> dict[str, Any]:
        """One distribution per head, from the decoder's output."""
        return _distributions(self.heads, features)

    def decode_scales(
        self, z: Tensor, condition: Condition
    ) -> tuple[dict[str, Any], dict[tuple[int, int, int], dict[str, Any]]]:
        """Gives the distributions at full resolution, and those of each lower one by its stride."""
        if not self.coarse_heads:
            return self.decode(z, condition), {}
        *low, fine = self.decoder.pyramid(z, self.vector_of(condition, z), condition.maps)
        coarse = {
            stride: _distributions(heads, features)
            for stride, heads, features in zip(
                self.decoder.coarse_strides, self.coarse_heads, low, strict=True
            )
        }
        return _distributions(self.heads, fine), coarse

    def log_joint(self, z: Tensor, batch: Batch, condition: Condition) -> Tensor:
        r""":math:`\log p(x, m, z \mid c)` in nats, ``(B,)``."""
        fit = self.log_likelihood(self.decode(z, condition), batch)
        return fit + self.prior_given(condition).log_prob(z)

    @staticmethod
    def log_likelihood(heads: Mapping[str, Any], batch: Batch) -> Tensor:
        r""":math:`\log p(x, m \mid z, c)` in nats, ``(B,)``, over what was observed."""
        valid = {"image": batch.get("valid"), "mask": batch.get("mask_valid")}
        return sum(head.log_prob(batch[name], valid[name]) for name, head in heads.items())

    def trace(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,
        *,
        with_flow: bool = True,
    ) -> Trace:
        """Runs one pass: encode, flow, decode.

        Args:
            batch: See the class.
            generator: Source of the posterior's and the momentum's noise.
            with_flow: Whether to run the flow; without it the trace is that of the plain VAE.
        """
        condition = self.condition(batch, generator)
        features, posterior = self.read(batch, condition, generator)
        first_z = posterior.rsample(generator)
        potential = Potential(self, batch, condition)
        if with_flow and not isinstance(self.flow, Identity):
            told: dict[str, Any] = {}
            if getattr(self.flow, "reads_encoder", False):
                told = {"features": features, "mean": posterior.mean, "cases": batch.get("case")}
            flowed = self.flow(first_z, potential, generator, **told)
        else:
            flowed = Identity()(first_z, lambda z: z.flatten(1).sum(1))
        # An exact flow has decoded its end already, inside of the graph: what it takes to teach
        # through the last force also teaches through the reconstruction.
        found = None if self.coarse_heads else potential.decoded_at(flowed.z)
        heads, coarse = self.decode_scales(flowed.z, condition) if found is None else (found, {})
        prior = self.prior_given(condition)
        return Trace(posterior, prior, first_z, flowed, heads, condition, coarse)

    # -- making new ones ----------------------------------------------------------------------

    def sample_latent(
        self,
        count: int,
        attributes: Tensor | None = None,
        generators: Sequence[torch.Generator] | torch.Generator | None = None,
        temperature: float = 1.0,
        condition: Condition | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Draws latents from the sampling prior, in the decoder's own scale.

        A model with a conditional prior draws from that, under ``condition``. A prior that is told
        masks draws latents of volumes that have them, ``(count, 1, I, J, K)``.
        """
        if self.conditional_prior is not None:
            bound = self.conditional_prior(condition if condition is not None else Condition())
            noise = standard_normal(bound.mean.shape, generators, device=bound.mean.device)
            return bound.mean + temperature * bound.scale * noise
        prior = self.sampling_prior if self.sampling_prior is not None else self.prior
        told: dict[str, Any] = {} if mask is None else {"mask": mask}
        u = prior.sample(
            count, attributes=attributes, generators=generators, temperature=temperature, **told
        )
        return u.to(self.latent_scale) / self.latent_scale

    def forward(self, image: Tensor) -> Tensor:
        """Rebuilds image and mask from the image alone, without noise.

        This is the plain-tensor pass that bundle tools and viewers need. A model without an encoder
        gives what it makes of a latent of zeros.

        Shape:
            - ``image``: :math:`(B, C, I, J, K)`
            - output: :math:`(B, N + C, I, J, K)`, mask fields first, then the image
        """
        joint = set(self.inputs) == {"image", "mask"} or self.encoder is None
        if set(self.heads) != {"image", "mask"} or not joint or self.context is not None:
            raise SettingError("only a joint model rebuilds a mask from an image alone")
        batch = {"image": image}
        condition = self.condition(batch)
        if self.encoder is None:
            z = image.new_zeros(len(image), *self.latent_shape)
        else:
            z = self.encode(batch, condition).mean
        heads = self.decode(z, condition)
        return torch.cat([heads["mask"].field(), heads["image"].mode()], dim=1)


def _distributions(heads: Any, features: Tensor) -> dict[str, Any]:
    """One distribution per head, each from its own channels of the features."""
    pieces = features.split([int(head.features) for head in heads.values()], dim=1)
    return {name: head(piece) for (name, head), piece in zip(heads.items(), pieces, strict=True)}
