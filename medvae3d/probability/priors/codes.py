r"""A prior over grids of codes: an autoregressive transformer, told attributes and a mask or not.

The codes of a sample are put in raster order behind a start token, the coarse level first, and

.. math:: p(k_1, \dots, k_T \mid a, m) = \prod_t p(k_t \mid k_{<t}, a, m)

is a causal transformer (MONAI's), which reads attributes, and of a mask the share of each label
around each place, through cross-attention. A place of the mask has the position of the code there,
so that the transformer need not learn where to look. At each place only the codes of its level can
follow, so probabilities over whole grids sum to one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from monai.networks.nets.transformer import DecoderOnlyTransformer
from monai.utils.ordering import Ordering
from torch import Tensor, nn

from medvae3d.errors import SettingError
from medvae3d.numerics import Generators, float32_island
from medvae3d.probability.codebook import Codebooks
from medvae3d.probability.priors.base import (
    HeldOut,
    checked_latents,
    one_by_one,
    require_attributes,
)
from medvae3d.probability.priors.mask_tokens import MaskTokens
from medvae3d.probability.priors.walk import CachedWalk
from medvae3d.seeding import derive_generator, derive_seed

MOST_TOKENS = 4096
"""Longest sequence: plain attention grows with its square, and with 4096 holds 64 MB a head."""

logger = logging.getLogger(__name__)


class CodePrior(nn.Module):
    """An autoregressive prior over the codes of a `Codebooks` latent; uniform until it is fitted.

    Args:
        codebooks: What the latent is made of; the module that the model's posterior is.
        attributes: Number :math:`F` of attributes, standardised; 0 for none.
        width: Features of the transformer.
        depth: Blocks.
        heads: Attention heads.
        steps: Steps of the fit.
        batch_size: Sequences a step.
        learning_rate: Of the fit; it falls along half a cosine.
        forgetting: Share of the sequences that are not told their attributes, so that the prior
            also draws without any.
        values: Label values of the masks that it is told, background first; empty for none.
        mask_forgetting: Share of the sequences that are not told their mask.

    Raises:
        SettingError: If a sample has more codes than attention can take.

    References:
        van den Oord et al., "Neural discrete representation learning", 2017, for the two stages;
        Esser et al., "Taming transformers for high-resolution image synthesis", 2021, for the
        transformer.
    """

    keeps_scale = True

    fitted: Tensor
    order: Tensor
    allowed: Tensor

    def __init__(
        self,
        codebooks: Codebooks,
        attributes: int = 0,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        steps: int = 1000,
        batch_size: int = 16,
        learning_rate: float = 3e-3,
        forgetting: float = 0.1,
        values: Sequence[int] = (),
        mask_forgetting: float = 0.3,
    ) -> None:
        super().__init__()
        count = codebooks.tokens
        if count > MOST_TOKENS or width % heads:
            raise SettingError(
                f"a prior of width {width} with {heads} heads over {count} codes a sample; allowed "
                f"are at most {MOST_TOKENS} codes, and a width that the heads divide. Add a level "
                f"to `channels` for a coarser latent, or change `prior_width`."
            )
        self.codebooks = codebooks
        self.attributes = attributes
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.forgetting = forgetting
        self.values = tuple(values)
        self.mask_forgetting = mask_forgetting
        self.start = sum(codebooks.sizes)
        self.transformer = DecoderOnlyTransformer(
            num_tokens=self.start + 1,
            max_seq_len=count,
            attn_layers_dim=width,
            attn_layers_depth=depth,
            attn_layers_heads=heads,
            with_cross_attention=attributes > 0 or bool(self.values),
            embedding_dropout_rate=0.1,
        )
        # One token an attribute, the last one for "nothing is known".
        self.told = nn.Linear(1, attributes * width) if attributes else None
        self.unknown = nn.Parameter(torch.zeros(1, 1, width)) if attributes else None
        self.shown = MaskTokens(self.values, codebooks.grids, width) if self.values else None
        orders, allowed, offset, place = [], [], 0, 0
        for grid, size in zip(codebooks.grids, codebooks.sizes, strict=True):
            raster = Ordering("raster_scan", 3, (1, *grid)).get_sequence_ordering()  # type: ignore[arg-type]
            orders.append(torch.as_tensor(raster) + place)
            row = torch.zeros(math.prod(grid), self.start + 1, dtype=torch.bool)
            row[:, offset : offset + size] = True
            allowed.append(row)
            offset, place = offset + size, place + math.prod(grid)
        self.register_buffer("order", torch.cat(orders))
        self.register_buffer("allowed", torch.cat(allowed))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @property
    def is_standard(self) -> bool:
        return False

    # -- sequences ---------------------------------------------------------------------------------

    def sequences(self, z: Tensor) -> Tensor:
        """The codes of latents in the order that they are drawn in, ``(B, T)``."""
        found, offset = [], 0
        for index, size in zip(self.codebooks.indices(z), self.codebooks.sizes, strict=True):
            found.append(index.flatten(1) + offset)
            offset += size
        return torch.cat(found, 1)[:, self.order]

    def latents(self, sequences: Tensor) -> Tensor:
        """The latents that sequences stand for; the inverse of `sequences`."""
        placed = torch.empty_like(sequences)
        placed[:, self.order] = sequences
        grids, offset, place = [], 0, 0
        for grid, size in zip(self.codebooks.grids, self.codebooks.sizes, strict=True):
            count = math.prod(grid)
            grids.append((placed[:, place : place + count] - offset).reshape(-1, *grid))
            offset, place = offset + size, place + count
        return self.codebooks.embed(grids)

    def mask_shares(self, mask: Tensor) -> Tensor:
        """What is told of masks ``(B, 1, I, J, K)``; see `MaskTokens.shares`.

        Raises:
            SettingError: If the prior was made without masks.
        """
        if self.shown is None:
            raise SettingError(
                "this prior is told no mask. Train with `network_def#told_mask=true`, or draw "
                "without one."
            )
        return self.shown.shares(mask, self.order)

    def _context(
        self, attributes: Tensor | None, shares: Tensor | None, count: int
    ) -> Tensor | None:
        """What cross-attention reads, ``(B, C, width)``: attributes, then places of the mask."""
        parts = [self._attribute_tokens(attributes, count)]
        if self.shown is not None:
            places = self.transformer.position_embeddings.embedding.weight
            parts.append(self.shown(shares, places[: len(self.order)], count))
        known = [part for part in parts if part is not None]
        return torch.cat(known, 1) if known else None

    def _attribute_tokens(self, attributes: Tensor | None, count: int) -> Tensor | None:
        """A token for each attribute, ``(B, F + 1, width)``; zeros where nothing is known."""
        if self.told is None or self.unknown is None:
            return None
        if attributes is None:
            attributes = self.unknown.new_full((count, self.attributes), math.nan)
        require_attributes(attributes, self.attributes)
        known = attributes.isfinite().to(self.unknown)[..., None]
        weight = self.told.weight.reshape(self.attributes, -1)
        bias: Tensor = self.told.bias
        tokens = attributes.nan_to_num().to(weight)[..., None] * weight
        tokens = known * (tokens + bias.reshape(self.attributes, -1))
        nothing = self.unknown * (1 - known.amax(1, keepdim=True))
        return torch.cat([tokens, nothing], 1)

    def _log_probabilities(
        self, sequences: Tensor, attributes: Tensor | None, shares: Tensor | None = None
    ) -> Tensor:
        """Of each code given those before it in nats, ``(B, T)``."""
        before = F.pad(sequences[:, :-1], (1, 0), value=self.start)
        logits = self.transformer(before, self._context(attributes, shares, len(sequences)))
        logits = logits.float().masked_fill(~self.allowed, -math.inf)
        return logits.log_softmax(-1).gather(2, sequences[..., None])[..., 0]

    def log_prob(
        self, z: Tensor, attributes: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Log probability of latents of codes in nats, ``(B,)``, given a mask if there is one."""
        if not bool(self.fitted):
            return self.codebooks.log_prob(z)
        with float32_island(z.device.type):
            told = None if attributes is None else attributes.float()
            shares = None if mask is None else self.mask_shares(mask)
            return self._log_probabilities(self.sequences(z), told, shares).sum(1)

    # -- fitting -----------------------------------------------------------------------------------

    def fit(
        self,
        latents: Tensor,
        attributes: Tensor | None = None,
        *,
        seed: int,
        validation: HeldOut | None = None,
        shares: Tensor | None = None,
    ) -> CodePrior:
        """Fits the transformer to the codes of the training set.

        The same latents and seed give the same prior, so a fit that was interrupted is done again.

        Args:
            latents: Latents of codes, ``(N, ...)``.
            attributes: What the cases are told, ``(N, F)``.
            seed: Seeds weights, order and dropout.
            validation: Held-out latents. The weights of the lowest cross-entropy on them are kept.
            shares: What `mask_shares` gives for the masks of the cases, ``(N, T, N)``, for a prior
                that is told them.

        Raises:
            SettingError: If the sizes do not fit, a value is not finite, or masks are missing.
        """
        if (0 if shares is None else len(shares)) != (len(latents) if self.values else 0):
            raise SettingError(
                f"{len(latents)} latents with {'no' if shares is None else len(shares)} masks for "
                f"a prior that is told {'one each' if self.values else 'none'}. Give what it is "
                f"told, or make it with other `values`."
            )
        shape = self.codebooks.shape
        checked_latents(latents, attributes, shape, self.attributes, 1)
        device = self.order.device
        known = self.sequences(latents.reshape(-1, *shape).to(device))
        told = None if attributes is None or not self.attributes else attributes.float().to(device)
        held_out = None
        if validation is not None:
            held_out = validation if isinstance(validation, tuple) else (validation, None)
        generator = derive_generator(seed, "sequences")
        best, best_score = None, math.inf
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), learning(self):
            torch.manual_seed(derive_seed(seed, "weights"))
            self._start_anew()
            parameters = [p for p in self.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=0.01)
            size = min(self.batch_size, len(known))
            for step in range(self.steps):
                pick = torch.randperm(len(known), generator=generator)[:size].to(device)
                row = None if told is None else told[pick].clone()
                if row is not None:
                    unsaid = torch.rand(len(row), generator=generator) < self.forgetting
                    row[unsaid.to(device)] = math.nan
                shown = None if shares is None else shares[pick.to(shares.device)].to(device)
                if shown is not None:
                    hidden = torch.rand(len(shown), generator=generator) < self.mask_forgetting
                    shown = shown * (~hidden).to(shown)[:, None, None]
                loss = -self._log_probabilities(known[pick], row, shown).mean()
                for group in optimizer.param_groups:
                    share = 0.5 * (1 + math.cos(math.pi * step / self.steps))
                    group["lr"] = self.learning_rate * min(1.0, (step + 1) / 20) * share
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                if (step + 1) % max(1, self.steps // 10) == 0:
                    logger.info("prior of codes: step %d of %d, %.3f nats a code",
                                step + 1, self.steps, float(loss.detach()))  # fmt: skip
                    if held_out is not None:
                        score = self._score(*held_out)
                        if score < best_score:
                            best, best_score = _copy(self), score
        if best is not None:
            self.load_state_dict(best)
        self.fitted.fill_(True)
        self.eval()
        return self

    def _start_anew(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        if self.told is not None:
            nn.init.normal_(self.told.weight, std=0.5)
            nn.init.normal_(self.told.bias, std=0.5)
        if self.shown is not None:
            nn.init.normal_(self.shown.embed.weight, std=0.5)

    @torch.no_grad()
    def _score(self, latents: Tensor, attributes: Tensor | None) -> float:
        device = self.order.device
        self.eval()
        told = None if attributes is None else attributes.float().to(device)
        z = latents.reshape(-1, *self.codebooks.shape).to(device)
        score = -float(self._log_probabilities(self.sequences(z), told).mean())
        self.transformer.train()
        return score

    # -- sampling ----------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        count: int,
        attributes: Tensor | None = None,
        generators: Generators = None,
        temperature: float = 1.0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Draws latents; one at a time, so that none depends on the size of the batch.

        Args:
            count: How many.
            attributes: What they should have, ``(count, F)``.
            generators: One for all, or one for each.
            temperature: Divides the logits; at 0 the likeliest code is taken at each place.
            mask: Masks that the volumes should have, ``(count, 1, I, J, K)``, of a prior that is
                told them.
        """
        if not bool(self.fitted):
            return self.codebooks.sample(count, None, generators)
        device = self.order.device
        told = None if attributes is None else attributes.float().to(device)
        shares = None if mask is None else self.mask_shares(mask.to(device))
        if shares is not None and len(shares) != count:
            raise SettingError(
                f"{count} samples asked for with {len(shares)} masks; give one each."
            )
        nothing = self.order.new_zeros(0, len(self.order))
        draw = partial(self._draw, temperature=temperature)
        with float32_island(device.type):
            drawn = one_by_one(count, (told, shares), generators, draw, nothing)
            if not count:
                return torch.zeros(0, *self.codebooks.shape, device=device)
            # Embedding looks rows up, so that a batch is what its samples are.
            return self.latents(drawn)

    def _draw(
        self,
        attributes: Tensor | None,
        shares: Tensor | None,
        generator: torch.Generator | None,
        temperature: float,
    ) -> Tensor:
        device = self.order.device
        place = generator.device if generator is not None else torch.device("cpu")
        count = len(self.order)
        noise = torch.rand(count, generator=generator, dtype=torch.float64, device=place)
        walk = CachedWalk(self.transformer, self._context(attributes, shares, 1))
        token = torch.tensor([[self.start]], device=device)
        drawn = []
        for position in range(count):
            logits = walk.step(token, position)[0, 0].double()
            logits = logits.masked_fill(~self.allowed[position], -math.inf)
            if temperature > 0:
                edges = (logits / temperature).softmax(0).cumsum(0)
                picked = torch.searchsorted(edges, noise[position].to(device) * edges[-1])
                # Rounding may lead one past the last code that can follow.
                picked = picked.clamp_max(int(self.allowed[position].nonzero().amax()))
            else:
                picked = logits.argmax()
            token = picked.reshape(1, 1)
            drawn.append(picked)
        return torch.stack(drawn)

    def extra_repr(self) -> str:
        return f"tokens={len(self.order)}, attributes={self.attributes}, values={self.values}"


@contextmanager
def learning(module: nn.Module) -> Iterator[None]:
    """Lets a module that may be frozen, as a slow copy is, learn inside."""
    before = {name: p.requires_grad for name, p in module.named_parameters()}
    was_training = module.training
    module.requires_grad_(True).train()
    for each in module.modules():
        if isinstance(each, Codebooks):
            each.eval()
    try:
        yield
    finally:
        module.train(was_training)
        for name, p in module.named_parameters():
            p.requires_grad_(before[name])
            p.grad = None


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}
