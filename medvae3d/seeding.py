"""Seeds that depend on names and numbers alone, so that nothing depends on the order of draws."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *parts: object) -> int:
    """Mixes a seed with names and numbers into a new seed of 63 bits.

    The result is the same in every process and on every machine, unlike Python's ``hash``.

    Args:
        seed: The user's seed.
        *parts: What the new seed is for, such as ``"order"`` and a step number.
    """
    text = "\x1f".join([str(int(seed)), *(str(part) for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def derive_generator(seed: int, *parts: object) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *parts))
