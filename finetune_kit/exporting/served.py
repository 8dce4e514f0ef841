"""What is exported of a run: from users' padded source items to scores, or to the best answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from finetune_kit.errors import PluginError
from finetune_kit.strategy import Strategy
from finetune_kit.task import LabelTask
from finetune_kit.training.merge import merged_strategy, users_only

if TYPE_CHECKING:
    from finetune_kit.training.assemble import Run

SEQUENCE, USER = "sequence", "user"
"""Names of the inputs."""
GATES = ("gates", "skipped")
"""Names of the outputs that tell what a policy decided."""


class Served(nn.Module):
    """A strategy as a server calls it.

    Args:
        strategy: In evaluation mode.
        top: How many of the best answers are wanted; None wants the scores of all.
        is_topk_stable: Whether, in the engine that will run it, ``topk`` takes the first of equal values, as ONNX says
            and torch does not.
    """

    def __init__(self, strategy: Strategy, top: int | None = None, *, is_topk_stable: bool = False) -> None:
        super().__init__()
        self.strategy = strategy
        self.top = top
        self.is_topk_stable = is_topk_stable
        is_label = isinstance(strategy.task, LabelTask)
        self.answers, self.measure = ("classes", "probabilities") if is_label else ("items", "scores")

    def forward(self, sequence: Tensor, user: Tensor | None = None) -> dict[str, Tensor]:
        """Return the outputs by name.

        Args:
            sequence: Source item ids ``(users, length)`` int64, left-padded with 0.
            user: User ids ``(users,)`` int64; None for strategies that don't look at them.

        Returns:
            ``scores``, or a label's ``probabilities``, ``(users, answers)``; with ``top`` those of the best alone,
            ``(users, top)`` descending, after their columns in the whole, ``items`` or ``classes``. Then ``gates`` and
            ``skipped``, ``(users, blocks)``, where the strategy has them.
        """
        encoded = self.strategy.encode(users_only(cast("Tensor", user), sequence))
        scores = self.strategy.task.scores(encoded.vectors)
        scores = scores.softmax(dim=1) if self.answers == "classes" else scores
        if self.top is None:
            outputs = {self.measure: scores}
        else:
            values, columns = scores.topk(self.top) if self.is_topk_stable else best_of_fixed_shape(scores, self.top)
            outputs = {self.answers: columns, self.measure: values}
        chosen = zip(GATES, (encoded.gates, encoded.skipped), strict=True)
        return outputs | {name: gate.float() for name, gate in chosen if gate is not None}


def best_of_fixed_shape(scores: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return what `finetune_kit.recommendation.answers.best` does, with no shape that depends on values.

    Args:
        scores: ``(users, answers)``.
        num: At most ``answers``.
    """
    lowest = scores.topk(num, dim=1).values[:, -1:]  # (users, 1)
    above, level = scores > lowest, scores == lowest
    room = num - above.sum(dim=1, keepdim=True)  # (users, 1)
    taken = above | (level & (level.cumsum(dim=1) <= room))  # num in each row
    place = torch.arange(scores.shape[1], 0, -1, device=scores.device)  # no two alike, so topk leaves nothing open
    columns = torch.where(taken, place, 0).topk(num, dim=1).indices  # ascending
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def strategy_to_export(run: Run) -> Strategy:
    """Return the plain backbone with a head that a run's strategy merges into, or the strategy if it does not."""
    try:
        return merged_strategy(run)
    except PluginError:
        return run.strategy
