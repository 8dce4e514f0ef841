"""Ours and the reference in turns, in one process: what a machine does beside slows both of a round alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@contextmanager
def without_collector() -> Iterator[None]:
    """Collect garbage now and not before the end."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def seconds(work: Callable[[], object]) -> float:
    """Return how long some work takes."""
    with without_collector():
        started = time.perf_counter()
        work()
        return time.perf_counter() - started


@dataclass
class Row:
    """One row of the table.

    Args:
        name: As `--only` takes it.
        what: What one unit of work is.
        ours: Seconds per round.
        reference: Seconds per round of what it is held against.
        users: Users of one unit of work, where users per second are told.
        precision: What ours computed in; the reference computes in float32.
        gigaflops: Of ours and of the reference, matrix products and convolutions alone, by the formulas of
            `torch.utils.flop_counter`; None where not counted.
        mebibytes: Peak memory of ours and of the reference, each in a process of its own; None where not measured.
        against: What the reference is.
        remarks: Other numbers, by their names.
    """

    name: str
    what: str
    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    users: int | None = None
    precision: str = "float32"
    gigaflops: tuple[float, float] | None = None
    mebibytes: tuple[float, float] | None = None
    against: str = "straight"
    remarks: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return everything as JSON can say it, with median and quartiles."""
        ratios = [reference / ours for ours, reference in zip(self.ours, self.reference, strict=True)]
        spreads = {"ours": spread(self.ours), "reference": spread(self.reference), "ratio": spread(ratios)}
        return {**asdict(self), "rounds": len(self.ours), "spread": spreads}


def spread(values: list[float]) -> list[float]:
    """Return lower quartile, median and upper quartile."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def alternate(row: Row, ours: Callable[[], object], reference: Callable[[], object], rounds: int) -> Row:
    """Fill a row with rounds of one after the other, each tried once before; return it."""
    ours()
    reference()
    for _ in range(rounds):
        row.ours.append(seconds(ours))
        row.reference.append(seconds(reference))
    return row


def matmul_peaks(size: int, tries: int = 5) -> dict[str, float]:
    """Return the most gigaflops per second that a square matrix product reaches, by precision."""
    peaks = {}
    for precision in ("float32", "bfloat16"):
        matrix = torch.randn(size, size, dtype=getattr(torch, precision))
        torch.mm(matrix, matrix)
        peaks[precision] = 2e-9 * size**3 / min(seconds(lambda m=matrix: torch.mm(m, m)) for _ in range(tries))
    return peaks
