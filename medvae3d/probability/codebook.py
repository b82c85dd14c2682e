r"""A latent of codes: the posterior of a VQ-VAE, whose codebook follows the encoder.

Each place of a latent map takes the code that is nearest to what the encoder says there,
:math:`e_k` with :math:`k = \arg\min_j \|z_e - e_j\|`. Its gradient is handed straight through to
the encoder, :math:`z = z_e + \mathrm{sg}[e_k - z_e]`. Codes are running means of what fell to them,

.. math::
    n_k \leftarrow g\, n_k + (1-g)\, |\{z_e \to k\}|, \qquad
    s_k \leftarrow g\, s_k + (1-g) \sum_{z_e \to k} z_e, \qquad e_k = s_k / n_k,

so they need no gradient and no loss of their own. With a uniform prior over codes, the divergence
is the constant :math:`T \log K` of :math:`T` places and :math:`K` codes, and
:math:`\log p(x \mid z) - T \log K` is a bound of the evidence like any other.

References:
    van den Oord et al., "Neural discrete representation learning", 2017.
    Razavi et al., "Generating diverse high-fidelity images with VQ-VAE-2", 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from medvae3d.errors import SettingError
from medvae3d.numerics import Generators, at_least_float32, float32_island
from medvae3d.probability.priors.base import one_each
from medvae3d.seeding import derive_generator

EPSILON = 1e-5
"""Laplace smoothing of the counts."""


@dataclass(frozen=True)
class Codes:
    """All mass on one code a place; a discrete posterior, so densities are probabilities.

    Attributes:
        features: What the encoder says, :math:`z_e`.
        mean: The nearest codes, cut off from the graph, of the same shape.
        indices: Which codes these are, ``(B, i, j, k)`` for each level, the coarsest first.
        nats: What naming all codes of a sample costs under the uniform prior, in nats.
        perplexity: Of the codebook's running use, a scalar for each level.
    """

    features: Tensor
    mean: Tensor
    indices: tuple[Tensor, ...]
    nats: float
    perplexity: tuple[Tensor, ...]

    @property
    def scale(self) -> Tensor:
        return torch.zeros_like(self.mean)

    def rsample(self, generator: Generators = None) -> Tensor:
        """The codes, with their gradient handed straight through to the features."""
        return self.features + (self.mean - self.features).detach()

    def log_prob(self, z: Tensor) -> Tensor:
        return self.mean.new_zeros(len(self.mean))

    def kl_per_element(self) -> Tensor:
        """The divergence from the uniform prior, dealt out evenly over the latent."""
        return torch.full_like(self.mean, self.nats / self.mean[0].numel())

    def kl(self) -> Tensor:
        """The divergence from the uniform prior in nats, a constant."""
        return self.mean.new_full((len(self.mean),), self.nats)

    def mode(self) -> Tensor:
        return self.mean

    def commitment(self) -> Tensor:
        r""":math:`\overline{\|z_e - \mathrm{sg}[e]\|^2}`, mean over the latent, ``(B,)``."""
        return (self.features - self.mean).square().flatten(1).mean(1)


class Codebook(nn.Module):
    """Codes that follow the vectors that fall to them; unused ones are put among those.

    The first batch of training gives the first codes. A code whose running count is below
    ``dead_share`` of that of an average code is dead: it becomes a vector of the present batch.
    All choices come from a generator that is seeded by the number of updates, so that a resumed run
    makes the same ones. Float32.

    Args:
        codes: Number :math:`K` of codes.
        features: Length of a code.
        decay: Decay :math:`g` of the running sums.
        dead_share: Share of an average count below which a code is dead.

    Attributes:
        revives: Whether dead codes are put among the vectors. What is put there parts vectors that
            one code named until then, so near the end of a training it is better left.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor
    updates: Tensor

    def __init__(
        self, codes: int, features: int, decay: float = 0.99, dead_share: float = 0.2
    ) -> None:
        super().__init__()
        if codes < 2 or features < 1 or not 0 <= decay < 1:
            raise SettingError(
                f"Codebook(codes={codes}, features={features}, decay={decay}); allowed are "
                f"codes >= 2, features >= 1, 0 <= decay < 1."
            )
        self.size = codes
        self.features = features
        self.decay = decay
        self.dead_share = dead_share
        self.revives = True
        generator = derive_generator(codes, "codebook", features)
        self.register_buffer("codes", torch.randn(codes, features, generator=generator))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.codes.clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @property
    def perplexity(self) -> Tensor:
        r""":math:`\exp(-\sum_k p_k \log p_k)` of the running use, a scalar from 1 to :math:`K`."""
        share = self.counts / self.counts.sum()
        return torch.special.entr(share).sum().exp()

    @property
    def spacing(self) -> Tensor:
        """Mean squared distance of a code to its nearest neighbour, a scalar."""
        own = torch.eye(self.size, dtype=torch.bool, device=self.codes.device)
        square = self.codes.square().sum(1, keepdim=True)
        others = (square + self.distances(self.codes)).masked_fill(own, math.inf)
        return others.amin(1).mean().clamp_min(EPSILON)

    def distances(self, vectors: Tensor) -> Tensor:
        """Squared distance to each code, less the vector's own square, ``(M, D)`` to ``(M, K)``."""
        return self.codes.square().sum(1) - 2 * vectors @ self.codes.T

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code, ``(M, D)`` to ``(M,)``."""
        return self.distances(vectors).argmin(1)

    @torch.no_grad()
    def learn(self, vectors: Tensor) -> None:
        """Moves the codes after the vectors of a batch, ``(M, D)``."""
        generator = derive_generator(int(self.updates), "codes")
        per_code = torch.tensor(float(len(vectors)), device=vectors.device)
        _sum_over_processes(per_code)
        per_code = per_code / self.size
        if not int(self.updates):
            self._place(torch.ones_like(self.counts, dtype=torch.bool), vectors, generator, 1.0)
            self.counts.fill_(float(per_code))
            self.sums.copy_(self.codes * per_code)
        index = self.nearest(vectors)
        counts = torch.bincount(index, minlength=self.size).to(self.counts)
        sums = torch.zeros_like(self.sums).index_add_(0, index, vectors)
        _sum_over_processes(counts)
        _sum_over_processes(sums)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        total = self.counts.sum()
        smooth = (self.counts + EPSILON) * total / (total + self.size * EPSILON)
        self.codes.copy_(self.sums / smooth[:, None])
        dead = self.counts < self.dead_share * per_code
        if self.revives and bool(dead.any()):
            self._place(dead, vectors, generator, float(per_code))
        self.updates += 1

    def _place(
        self, which: Tensor, vectors: Tensor, generator: torch.Generator, count: float
    ) -> None:
        """Puts some codes on vectors of the batch, a little apart from them."""
        wanted = int(which.sum())
        rounds = -(-wanted // len(vectors))
        picks = [torch.randperm(len(vectors), generator=generator) for _ in range(rounds)]
        found = vectors[torch.cat(picks)[:wanted].to(vectors.device)]
        # Two codes on one vector would stay there together.
        apart = 1e-3 * float(vectors.std()) * torch.randn(found.shape, generator=generator)
        self.codes[which] = found + apart.to(found)
        self.counts[which] = count
        self.sums[which] = self.codes[which] * count
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for shared in (self.codes, self.counts, self.sums):
                dist.broadcast(shared, 0)


def _sum_over_processes(x: Tensor) -> None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x)


class Codebooks(nn.Module):
    r"""From features to a latent of codes, on one grid or on two; and the uniform prior over both.

    With two levels, the first ``features`` channels are pooled to half of the resolution before
    they are named, and repeated afterwards: the coarse codes say what is where, the fine ones the
    rest.

    Args:
        grid: Places of the latent along (I, J, K).
        codes: Number of codes of each level.
        features: Length of a code.
        levels: 1 or 2.
        decay: See `Codebook`.
        dead_share: See `Codebook`.

    Shape:
        - features and latent: :math:`(B, D\,l, i, j, k)` with :math:`l` levels

    Raises:
        SettingError: If two levels are asked for on a grid with an odd side.
    """

    def __init__(
        self,
        grid: Sequence[int],
        codes: int = 256,
        features: int = 16,
        levels: int = 1,
        decay: float = 0.99,
        dead_share: float = 0.2,
    ) -> None:
        super().__init__()
        fine = tuple(int(n) for n in grid)
        if levels not in (1, 2) or (levels == 2 and any(n % 2 for n in fine)):
            raise SettingError(
                f"{levels} levels of codes on a latent of {fine} places; allowed are 1, or 2 on "
                f"even sides. Change `levels`, or `spatial_shape` and `strides`."
            )
        self.features = features
        self.shape = (features * levels, *fine)
        half = tuple(n // 2 for n in fine)
        self.grids: tuple[tuple[int, ...], ...] = (half, fine) if levels == 2 else (fine,)
        self.books = nn.ModuleList(
            Codebook(codes, features, decay, dead_share) for _ in range(levels)
        )

    @property
    def _levels(self) -> list[tuple[tuple[int, ...], Codebook]]:
        return [(g, cast(Codebook, b)) for g, b in zip(self.grids, self.books, strict=True)]

    @property
    def tokens(self) -> int:
        """Number of codes of one sample, over all levels."""
        return sum(math.prod(grid) for grid in self.grids)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes to choose from at each level."""
        return tuple(book.size for _, book in self._levels)

    @property
    def nats(self) -> float:
        """What naming all codes of a sample costs under the uniform prior, in nats."""
        return sum(
            math.prod(g) * math.log(size) for g, size in zip(self.grids, self.sizes, strict=True)
        )

    @property
    def is_standard(self) -> bool:
        return False

    def settle(self, settled: bool = True) -> None:
        """Says whether dead codes stay as they are from now on; see `Codebook`."""
        for _, book in self._levels:
            book.revives = not settled

    def require_data_for(self, cases: int) -> None:
        """Checks that a number of cases can fill the codebook.

        Raises:
            SettingError: If there are more codes than places in all cases together.
        """
        for grid, size in zip(self.grids, self.sizes, strict=True):
            places = cases * math.prod(grid)
            if size > places:
                raise SettingError(
                    f"{size} codes, and {cases} training cases of {math.prod(grid)} places "
                    f"({' x '.join(map(str, grid))}) have {places} places to fill them with. "
                    f"Set `network_def#codes` to {max(2, places // 4)} or less, give more cases, "
                    f"or a finer latent by fewer `channels`."
                )

    def forward(self, features: Tensor) -> Codes:
        """Names what the encoder says; moves the codes after it while training."""
        with float32_island(features.device.type):
            z = at_least_float32(features)
            parts, means, indices = [], [], []
            chunks = z.chunk(len(self.grids), 1)
            for part, (grid, book) in zip(chunks, self._levels, strict=True):
                if grid != part.shape[2:]:
                    part = F.avg_pool3d(part, 2)
                vectors = part.movedim(1, -1).reshape(-1, self.features)
                if self.training:
                    book.learn(vectors.detach())
                index = book.nearest(vectors.detach()).reshape(len(part), *part.shape[2:])
                parts.append(_as_large(part, z))
                means.append(_as_large(self._look_up(book, index), z))
                indices.append(index)
            perplexity = tuple(book.perplexity for _, book in self._levels)
            return Codes(
                torch.cat(parts, 1), torch.cat(means, 1), tuple(indices), self.nats, perplexity
            )

    @staticmethod
    def _look_up(book: Codebook, index: Tensor) -> Tensor:
        return book.codes[index].movedim(-1, 1)

    def indices(self, z: Tensor) -> tuple[Tensor, ...]:
        """Which codes a latent is made of, for each level; the inverse of `embed`."""
        found = []
        chunks = z.chunk(len(self.grids), 1)
        for part, (grid, book) in zip(chunks, self._levels, strict=True):
            if grid != part.shape[2:]:
                part = part[:, :, ::2, ::2, ::2]
            vectors = part.movedim(1, -1).reshape(-1, self.features).to(book.codes)
            found.append(book.nearest(vectors).reshape(len(part), *part.shape[2:]))
        return tuple(found)

    def misnaming(self, features: Tensor, indices: Sequence[Tensor]) -> Tensor:
        r"""How far features are from being given some names, ``(B,)``, a mean over places.

        The cross-entropy in nats of :math:`p(k \mid z) \propto \exp(-4 \|z - e_k\|^2 / s^2)`,
        where :math:`s^2` is the mean squared distance of a code to its neighbour; mean over levels.
        Codes are neither moved nor taught.
        """
        found = []
        with float32_island(features.device.type):
            z = at_least_float32(features)
            chunks = z.chunk(len(self.grids), 1)
            for part, (grid, book), index in zip(chunks, self._levels, indices, strict=True):
                if grid != part.shape[2:]:
                    part = F.avg_pool3d(part, 2)
                vectors = part.movedim(1, -1).reshape(-1, self.features)
                logits = -4 * book.distances(vectors) / book.spacing
                missed = F.cross_entropy(logits, index.flatten(), reduction="none")
                found.append(missed.reshape(len(part), -1).mean(1))
        return torch.stack(found).mean(0)

    def embed(self, indices: Sequence[Tensor]) -> Tensor:
        """The latent that some codes stand for."""
        pairs = zip(self._levels, indices, strict=True)
        parts = [self._look_up(book, each) for (_, book), each in pairs]
        return torch.cat([_as_large(part, parts[-1]) for part in parts], 1)

    # -- the uniform prior -------------------------------------------------------------------------

    def log_prob(self, z: Tensor, attributes: Tensor | None = None) -> Tensor:
        """Log probability of any latent of codes under the uniform prior in nats, ``(B,)``."""
        return z.new_full((len(z),), -self.nats, dtype=torch.float32)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        attributes: Tensor | None = None,
        generators: Generators = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws codes uniformly: noise, to compare a fitted prior with."""
        device = next(self.buffers()).device
        rows = []
        for each in one_each(count, None, generators):
            picked = [
                torch.randint(size, grid, generator=each, device=each.device if each else None).to(
                    device
                )[None]
                for size, grid in zip(self.sizes, self.grids, strict=True)
            ]
            rows.append(self.embed(picked))
        return torch.cat(rows) if rows else torch.zeros(0, *self.shape, device=device)

    def extra_repr(self) -> str:
        return f"tokens={self.tokens}, codes={self.sizes}"


def _as_large(part: Tensor, like: Tensor) -> Tensor:
    """Repeats a coarse map to the size of another."""
    if part.shape[2:] == like.shape[2:]:
        return part
    return part.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
