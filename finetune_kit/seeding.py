"""Randomness that is a function of a seed and a purpose, the same on every device.

All draws are made on the CPU from explicit generators and then moved, so that a run on a GPU makes the same
choices as one on a CPU, and an interrupted run goes on as if it had not been interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, e.g. ``derive_seed(0, "negatives", epoch)``."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a fresh CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Run a block, e.g. the initialisation of modules, with torch's global CPU generator seeded; restore it after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, *purpose))
        yield


def uniform_per_user(user: Tensor, num_draws: int, seed: int) -> Tensor:
    """Return draws from (0, 1), ``(users, num_draws)``, that depend on user id and seed alone.

    The same user gets the same draws in every batch, process and device: SplitMix64 of (seed, user, draw).

    Args:
        user: User ids ``(users,)``, int64.
        num_draws: Draws per user.
        seed: Any integer.
    """
    draw = torch.arange(num_draws, device=user.device)
    state = user.unsqueeze(1) * _wrap(0x9E3779B97F4A7C15) + draw * _wrap(0xD1B54A32D192ED03) + derive_seed(seed, "user")
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ _shift_right(state, shift)) * _wrap(factor)
    bits = _shift_right(state ^ _shift_right(state, 31), 41)  # the upper 23 bits: with a half added, exact in float32
    return (bits.to(torch.float32) + 0.5) / 2**23


def _wrap(unsigned: int) -> int:
    """Return the int64 with the bits of an unsigned 64-bit number; products wrap around as they should."""
    return unsigned - 2**64 if unsigned >= 2**63 else unsigned


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Return a logical (zero-filling) right shift of int64."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
