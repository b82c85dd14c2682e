"""Centres and matrices of cases as buffers: what a learned metric remembers of its training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medvae3d.errors import MetricError
from medvae3d.seeding import derive_seed


class CasePairs(nn.Module):
    r"""A centre :math:`c_i` and a factor :math:`L_i` for each case, :math:`M_i = L_i L_i^\top`.

    A queue of the latest pairs while a model is trained, and in the end one pair of each training
    case. All of it is in the state dict; loading one takes over its number of cases. Factors are
    kept rather than matrices, as their products have no negative eigenvalue whatever rounding does.

    Args:
        size: Elements :math:`d` of a latent.
        queue: Cases whose latest pair is kept while training.
    """

    centroids: Tensor
    factors: Tensor
    cases: Tensor
    filled: Tensor
    turn: Tensor
    fitted: Tensor

    def __init__(self, size: int, queue: int = 0) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("centroids", torch.zeros(queue, size))
        self.register_buffer("factors", torch.zeros(queue, size, size))
        self.register_buffer("cases", torch.full((queue,), -1, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(queue, dtype=torch.bool))
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def __len__(self) -> int:
        return int(self.filled.sum())

    @property
    def is_fitted(self) -> bool:
        """Whether these are the pairs of all training cases."""
        return bool(self.fitted)

    def all(self) -> tuple[Tensor, Tensor]:
        """Centres and factors, float64."""
        return self.centroids[self.filled].double(), self.factors[self.filled].double()

    def others(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Centres and factors of all cases but these."""
        given = torch.tensor(numbers, dtype=torch.int64, device=self.cases.device)
        kept = self.filled & ((self.cases < 0) | ~torch.isin(self.cases, given))
        return self.centroids[kept].double(), self.factors[kept].double()

    def holds(self, cases: Sequence[str]) -> list[bool]:
        """Which cases are among them; names are kept as numbers that do not show them."""
        known = set(self.cases[self.filled].tolist())
        return [number in known for number in case_numbers(cases)]

    @torch.no_grad()
    def fit(self, centroids: Tensor, factors: Tensor, cases: Sequence[str]) -> None:
        """Keeps one pair for each of all training cases, and nothing else.

        Args:
            centroids: :math:`(N, ...)`, of :math:`d` elements each.
            factors: :math:`(N, d, d)`.
            cases: Their names; of a name that comes twice, the first pair counts.

        Raises:
            MetricError: If there are no cases, or numbers that are not finite.
        """
        centroids = centroids.flatten(1)
        self._require(centroids, factors, len(cases))
        numbers = case_numbers(cases)
        rows = [i for i, number in enumerate(numbers) if numbers.index(number) == i]
        place = self.centroids.device
        index = torch.tensor(rows, device=centroids.device)
        self.centroids = centroids[index].to(place, self.centroids.dtype)
        self.factors = factors[index].to(place, self.factors.dtype)
        self.cases = torch.tensor([numbers[i] for i in rows], device=place)
        self.filled = torch.ones(len(rows), dtype=torch.bool, device=place)
        self.turn.zero_()
        self.fitted.fill_(True)

    @torch.no_grad()
    def remember(self, centroids: Tensor, factors: Tensor, numbers: Sequence[int]) -> None:
        """Keeps pairs of a batch: in the place of the same case's last one, or of the oldest.

        Args:
            centroids: :math:`(B, d)`.
            factors: :math:`(B, d, d)`.
            numbers: Of the cases, by `case_numbers`; -1 for a case without a name.
        """
        self.fitted.fill_(False)
        if not len(self.cases):
            return
        known = {number: row for row, number in enumerate(self.cases.tolist()) if number >= 0}
        turn = int(self.turn)
        for row, number in enumerate(numbers):
            place = known.get(number)
            if place is None:
                place, turn = turn, (turn + 1) % len(self.cases)
            self.centroids[place] = centroids[row].to(self.centroids)
            self.factors[place] = factors[row].to(self.factors)
            self.cases[place] = number
            self.filled[place] = True
        self.turn.fill_(turn)

    def take_sizes(self, state: Mapping[str, Any], prefix: str) -> None:
        """Makes room for as many cases as weights hold, which only they know.

        Args:
            state: A state dict that is about to be loaded.
            prefix: What the names of this module's tensors begin with in it.
        """
        for name in ("centroids", "factors", "cases", "filled"):
            given, mine = state.get(prefix + name), getattr(self, name)
            if isinstance(given, Tensor) and given.shape[1:] == mine.shape[1:]:
                setattr(self, name, mine.new_zeros(given.shape))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        self.take_sizes(state, prefix)
        super()._load_from_state_dict(state, prefix, *args)

    def _require(self, centroids: Tensor, factors: Tensor, names: int) -> None:
        size, count = self.size, len(centroids)
        wanted = (count, size, size)
        if not count or centroids.shape[1] != size or tuple(factors.shape) != wanted:
            raise MetricError(
                f"a metric of {tuple(centroids.shape)} centres and {tuple(factors.shape)} factors; "
                f"allowed are (N, {size}) and (N, {size}, {size}) with N of at least 1. Give it "
                f"the training cases of a model whose latent is a vector of {size}."
            )
        if names != count:
            raise MetricError(f"{count} pairs for {names} names of cases; give one name each.")
        good = centroids.isfinite().all(1) & factors.flatten(1).isfinite().all(1)
        if not bool(good.all()):
            raise MetricError(
                f"{int((~good).sum())} of {count} cases have a latent or matrix with NaN or "
                f"infinities, of which no metric can be made; look for these cases with "
                f"`medvae3d data check`, or go back to an intact checkpoint."
            )

    def extra_repr(self) -> str:
        return f"size={self.size}, cases={len(self)}, fitted={self.is_fitted}"


def case_numbers(cases: Sequence[str]) -> list[int]:
    """Numbers that stand for the names of cases in the buffers of a model."""
    return [derive_seed(0, "case", name) for name in cases]
