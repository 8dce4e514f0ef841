"""Training steps as the training loop does them, timed one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timing import without_collector
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from finetune_kit.sections import Optimizer
from finetune_kit.trainable import Trainable
from finetune_kit.training.device import make_fabric
from finetune_kit.training.loop import Loop


class Turns:
    """One batch again and again, for the loop; between two steps, something else has its turn.

    The loop asks for the next batch when a step is over, so the time between handing one out and being asked again is
    that of a whole step: forward, backward, optimizer, and what the loop does beside.

    Args:
        batch: What the loop is given.
        rounds: Steps that are timed, after one that is not.
        between: Called after each step, also that which is not timed.
    """

    def __init__(self, batch: Any, rounds: int, between: Callable[[], object] = lambda: None) -> None:
        self.batch, self.rounds, self.between = batch, rounds, between
        self.seconds: list[float] = []

    def epoch(self, generator: torch.Generator) -> Iterator[Any]:
        """Yield the batch so many times and once more."""
        for nth in range(self.rounds + 1):
            with without_collector():
                started = time.perf_counter()
                yield self.batch
                took = time.perf_counter() - started
            if nth:
                self.seconds.append(took)
            self.between()

    def num_batches(self) -> int:
        """Return how many steps there are."""
        return self.rounds + 1


def take_steps(module: Trainable, turns: Turns, precision: str = "32", optimizer: Optimizer = "adam") -> list[float]:
    """Let the training loop take the steps of one epoch; return the seconds of those that are timed."""
    loop = Loop(
        module,
        make_fabric("cpu", precision),
        "pretrain",
        learning_rate=1e-4,
        epochs=1,
        patience=0,
        monitor="value",
        optimizer=optimizer,
    )
    loop.fit(turns, lambda: {"value": 0.0})
    return turns.seconds


def straight_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a function that takes one step with a plain dense Adam."""
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


_IN_PLACE = {torch.ops.aten.addmm_: torch.ops.aten.addmm}
"""What costs as much as another operation, of which alone PyTorch knows the cost."""


class _Flops(TorchDispatchMode):
    """Adds up PyTorch's own formulas; its `FlopCounterMode` hooks modules too and trips over what runs without grad."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count it if there is a formula."""
        output = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(_IN_PLACE.get(func.overloadpacket, func.overloadpacket)):
            self.total += formula(*args, **(kwargs or {}), out_val=output)
        return output


def gigaflops(loss: Callable[[], Tensor]) -> float:
    """Return what a loss and its gradients cost: matrix products and convolutions alone, as PyTorch counts them."""
    with _Flops() as counter:
        loss().backward()
    return counter.total / 1e9
