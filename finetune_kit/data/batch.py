"""What a training step is given: users and instances of the target domain, or windows of the source domain."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self


class _OnDevice:
    """Dataclasses of tensors that move as one.

    They are not frozen because lightning-fabric, in mixed precision, refuses frozen dataclasses as inputs.
    """

    def to(self, device: torch.device | str) -> Self:
        """Return a copy with every tensor on a device."""
        itself: Any = self  # a dataclass, as all that derive from this are
        parts = {field.name: getattr(self, field.name) for field in fields(itself)}
        return replace(itself, **{name: part.to(device) for name, part in parts.items() if part is not None})


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
    """

    user: Tensor
    sequence: Tensor
    row: Tensor
    positive: Tensor
    negative: Tensor
    source: Windows | None = None

    def __len__(self) -> int:
        """Return the number of instances."""
        return len(self.row)
