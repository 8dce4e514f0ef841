"""Rows 'pretrain-50k' and 'pretrain-650k': a pre-training step on a large catalogue, its time and its memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from memory import peak_of
from sizes import Size
from steps import Turns, take_steps
from straight import StraightNextItem
from timing import Row, seconds

from finetune_kit.data.batch import Windows
from finetune_kit.training.assemble import build_backbone
from finetune_kit.training.pretrain import NextItem


def pretrain(size: Size, num_items: int) -> Row:
    """Time a step in turns, then look at the memory of each, in a process of its own."""
    name = f"pretrain-{num_items // 1000}k"
    row = Row(name, f"pre-training step of {size.windows} windows, {num_items:,} items")
    step = _straight_step(size, num_items)
    rounds = min(3, size.rounds)
    turns = Turns(_windows(size, num_items), rounds, lambda: row.reference.append(seconds(step)))
    row.ours, row.reference = take_steps(_ours(size, num_items), turns, optimizer="lazy-adam"), row.reference[1:]
    # What was built here does not weigh on those: each is a process of its own.
    row.mebibytes = peak_of(name, "ours", size.name), peak_of(name, "straight", size.name)
    row.remarks = {
        "positions with an item to predict": int((_windows(size, num_items).labels != 0).sum()),
        "windows of the steps whose memory was measured": size.windows_in_memory,
    }
    return row


def take_two_steps(size: Size, num_items: int, who: str, then: Callable[[], None]) -> None:
    """Take two steps, ours or straight ones, and call something while all that they need is still there."""
    size = replace(size, windows=size.windows_in_memory, windows_at_once=size.windows_in_memory)
    if who == "ours":
        take_steps(_ours(size, num_items), Turns(_windows(size, num_items), 1, then), optimizer="lazy-adam")
        return
    step = _straight_step(size, num_items)
    for _ in range(2):
        step()
    then()


def _windows(size: Size, num_items: int) -> Windows:
    return replace(size.step, users=size.windows, source_items=num_items).windows()


def _ours(size: Size, num_items: int) -> NextItem:
    """Return what `ftkit pretrain --set pretrain.loss=sampled-softmax` trains; here with lazy-adam."""
    backbone = build_backbone(size.step.config("finetune-all"), num_items)
    frequency = 1 / torch.arange(1, num_items + 1).float()
    return NextItem(backbone, frequency, size.num_negatives)


def _straight_step(size: Size, num_items: int) -> Callable[[], None]:
    """Return a step over the same windows, some of them at a time: the logits of all would not fit."""
    model = StraightNextItem(num_items, size.step.dim, size.step.dilations)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batch = _windows(size, num_items)
    count = (batch.labels != 0).sum()

    def step() -> None:
        optimizer.zero_grad()
        for start in range(0, len(batch), size.windows_at_once):
            part = slice(start, start + size.windows_at_once)
            (model(batch.inputs[part], batch.labels[part]) / count).backward()
        optimizer.step()

    return step
