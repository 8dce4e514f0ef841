"""Rows 'hard-step', 'hard-step-bf16' and 'growth': a training step of UAF-Hard."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
from sizes import Shape, Size, straight_of
from steps import Turns, gigaflops, straight_step, take_steps
from straight import StraightUafHard
from timing import Row, seconds
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.training.compilation import compile_blocks

WARMING = 15
"""Steps after which most shapes of groups have come up once, and have been compiled."""


def hard_step(size: Size, precision: str = "32", *, compiled: bool = False) -> Row:
    """Time a step of one batch, optimizer included, in turns."""
    shape = size.step
    batch, strategy = shape.batch(), shape.strategy("uaf-hard")
    straight = straight_of(strategy)
    loss = straight_loss(straight, batch)
    row = Row("hard-step", f"uaf-hard, training step of {shape.users} users", users=shape.users)
    if precision != "32":
        row.name, row.what, row.precision = "hard-step-bf16", f"{row.what}, bf16-mixed", "bfloat16"
    if compiled:
        row.name, row.what = f"{row.name}-compiled", f"{row.what}, compiled"
    row.gigaflops = gigaflops(lambda: strategy(batch)), gigaflops(loss)
    strategy.zero_grad()
    step = straight_step(straight, loss)
    turns = Turns(batch, size.rounds, lambda: row.reference.append(seconds(step)))
    if compiled:
        compile_blocks(strategy, torch.device("cpu"))
        take_steps(strategy, Turns(batch, WARMING), precision)
    row.ours = take_steps(strategy, turns, precision)
    row.reference = row.reference[1:]  # the first is the warm-up
    return row


def straight_loss(straight: StraightUafHard, batch: Batch) -> Callable[[], Tensor]:
    """Return a function that returns the straight loss of a batch, a row per instance, with new noise."""
    sequence, blocks = batch.sequence[batch.row], len(straight.backbone.blocks)
    return lambda: straight(sequence, batch.positive, batch.negative[:, 0], torch.rand(len(sequence), blocks, 2))


DOUBLED = {
    "users per batch": "users",
    "source items": "source_items",
    "target items": "target_items",
    "length": "length",
    "blocks": "blocks",
}


def growth(size: Size) -> list[dict[str, object]]:
    """Return seconds of our step where one number of its shape is halved twice, halved, and as it is."""
    rounds = max(3, size.rounds // 2)
    table = []
    for what, name in DOUBLED.items():
        values = [max(1, getattr(size.step, name) // share) for share in (4, 2, 1)]
        shapes = [replace(size.step, **{name: value}) for value in values]
        table.append({"what": what, "values": values, "seconds": [_step_seconds(shape, rounds) for shape in shapes]})
    return table


def _step_seconds(shape: Shape, rounds: int) -> float:
    return statistics.median(take_steps(shape.strategy("uaf-hard"), Turns(shape.batch(), rounds)))
