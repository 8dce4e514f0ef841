"""What a run chooses among: the target domain's items, or the classes of a profile label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from finetune_kit.task import LabelTask

if TYPE_CHECKING:
    from finetune_kit.training.assemble import Run


@dataclass(frozen=True)
class Answers:
    """The answers of a run, and what they are called in files.

    Args:
        raw: Raw ids of the items, or names of the classes; answer y stands at y - 1.
        is_label: Whether they are classes.
    """

    raw: list[str]
    is_label: bool

    @property
    def noun(self) -> str:
        """What one of them is."""
        return "class" if self.is_label else "item"

    @property
    def nouns(self) -> str:
        """What several of them are."""
        return "classes" if self.is_label else "items"

    @property
    def measure(self) -> str:
        """What they are ranked by."""
        return "probability" if self.is_label else "score"


def answers_of(run: Run) -> Answers:
    """Return the answers of a run."""
    return Answers(run.dataset.raw_target_items(), isinstance(run.strategy.task, LabelTask))


def best(scores: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return the highest scores, descending, and their columns, ``(users, num)`` each.

    Of equal scores the first columns are taken, in their order, on every device.

    Args:
        scores: ``(users, answers)``, finite or −∞.
        num: At most ``answers``.
    """
    lowest = scores.topk(num, dim=1).values[:, -1:]  # (users, 1)
    above, level = scores > lowest, scores == lowest
    room = num - above.sum(dim=1, keepdim=True)  # (users, 1)
    taken = above | (level & (level.cumsum(dim=1, dtype=torch.int32) <= room))  # num in each row
    columns = taken.nonzero()[:, 1].view(len(scores), num)  # ascending
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def in_few_digits(values: np.ndarray) -> np.ndarray:
    """Return float32 numbers as float64 of the same shape, written with as few digits as tell them from their like.

    0.1 is then 0.1, and not 0.10000000149011612.
    """
    result = values.astype(np.float64)
    size = np.abs(result)
    finite = (size > 1e-10) & (size < 1e10)  # beyond, powers of ten are not exact; nobody's scores are there
    number, exact = result[finite], values[finite]
    exponent = np.floor(np.log10(size[finite]))
    short, is_found = number.copy(), np.zeros(len(number), dtype=bool)
    for digits in range(6, 10):  # nine tell every float32; fewer than six come out of six, as zeros behind
        places = digits - 1 - exponent
        scale = 10.0 ** np.abs(places)
        rounded = np.where(places >= 0, np.rint(number * scale) / scale, np.rint(number / scale) * scale)
        fits = ~is_found & (rounded.astype(np.float32) == exact)
        short[fits] = rounded[fits]
        is_found |= fits
    result[finite] = short
    return result
