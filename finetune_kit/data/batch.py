"""What a training step is given: users and instances of the target domain, or windows of the source domain."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self


class _OnDevice:
    """Dataclasses of tensors that move as one.

    They are not frozen because lightning-fabric, in mixed precision, refuses frozen dataclasses as inputs.
    """

    def to(self, device: torch.device | str) -> Self:
        """Return a copy with every tensor on a device; itself where they are there already."""
        itself: Any = self  # a dataclass, as all that derive from this are
        parts = {field.name: getattr(self, field.name) for field in fields(itself)}
        moved = {name: part.to(device) for name, part in parts.items() if hasattr(part, "to")}
        return replace(itself, **moved) if any(moved[name] is not parts[name] for name in moved) else self


@dataclass
class Windows(_OnDevice):
    """Windows of source sequences, for next-item prediction.

    Args:
        inputs: ``(windows, length)`` int64, source item ids, left-padded with 0.
        labels: ``(windows, length)`` int64, the item that follows each input; 0 where there is none.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.inputs)

    def __getitem__(self, part: slice) -> Windows:
        """Return some of the windows."""
        return Windows(self.inputs[part], self.labels[part])

    def hide(self, hidden_item: int, share: float, noise: torch.Generator | None) -> Windows:
        """Return windows in which some items are hidden and to be guessed, at their own positions.

        Args:
            hidden_item: The id that takes the place of hidden items.
            share: Share of the items that is hidden, in (0, 1]; a window that would have none has its last hidden.
            noise: Decides which; None hides the last item of each window and no other.
        """
        sequence = self.labels  # the window one later: it ends with the latest item
        is_last = torch.zeros_like(sequence, dtype=torch.bool)
        is_last[:, -1] = True
        if noise is None:
            is_hidden = is_last
        else:
            is_hidden = torch.rand(sequence.shape, generator=noise).to(sequence.device) < share
            is_hidden = is_hidden & (sequence != 0)
            is_hidden = is_hidden | (is_last & ~is_hidden.any(dim=1, keepdim=True))
        is_hidden = is_hidden & (sequence != 0)
        return Windows(sequence.masked_fill(is_hidden, hidden_item), sequence.masked_fill(~is_hidden, 0))


class Share(NamedTuple):
    """Which users of a larger batch a batch has: those from ``start`` to before ``stop``, of ``total``."""

    start: int
    stop: int
    total: int


@dataclass
class Batch(_OnDevice):
    """Users and instances of the target domain.

    A user with five positives stands here once and is encoded once.

    Args:
        user: ``(users,)`` int64, dense user ids.
        sequence: ``(users, length)`` int64, source item ids, left-padded with 0.
        row: ``(instances,)`` int64, the row of ``user`` whose instance this is.
        positive: ``(instances,)`` int64, target item ids (for a profile label, classes) from 1.
        negative: ``(instances, negatives)`` int64, target item ids other than the positive; width 0 in evaluation
            and for profile labels.
        source: Windows of the source domain, for strategies that learn it too; else None.
        share: In one of several processes, which of the whole batch's users these are; None where they are all.
    """

    user: Tensor
    sequence: Tensor
    row: Tensor
    positive: Tensor
    negative: Tensor
    source: Windows | None = None
    share: Share | None = None

    def __len__(self) -> int:
        """Return the number of instances."""
        return len(self.row)

    def of_users(self, part: slice) -> Batch:
        """Return the batch of some of the users, those from ``part.start`` to before ``part.stop``."""
        is_theirs = (self.row >= part.start) & (self.row < part.stop)
        return replace(
            self,
            user=self.user[part],
            sequence=self.sequence[part],
            row=self.row[is_theirs] - part.start,
            positive=self.positive[is_theirs],
            negative=self.negative[is_theirs],
        )
