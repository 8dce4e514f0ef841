"""Stops training as soon as its numbers are none: names the step, its users, and the last good checkpoint.

A loss that is NaN or infinite, or a gradient that is, spoils every weight that the next update touches. On a CPU each
step is looked at before its update. An accelerator is not waited for in each step: the numbers stay on it and are
looked at together every `LOOK_EVERY` steps; the step at fault is found among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune_kit.errors import FinetuneKitError

LOOK_EVERY = 32
"""Steps between two looks at an accelerator's numbers."""
SMALL = 1 << 16
"""Entries up to which a parameter's gradient is looked at. Passing over a table of items takes a part of an update; a
fault in its gradient comes through the layers behind it, or shows in the loss of the next step with that row."""
SHOWN = 5
"""Users named in the error."""


class Seen(NamedTuple):
    """One step: its number in the epoch, loss and gradient's norm as ``(2,)`` on the device, its users if any."""

    step: int
    numbers: Tensor
    user: Tensor | None
    size: int


@dataclass
class Guard:
    """Looks at the losses and gradients of one epoch's steps.

    Args:
        stage: ``"pretrain"`` or ``"finetune"``.
        epoch: From 1.
        learning_rate: Named in the advice.
        checkpoint: Where the last good state is kept, or None.
        has_scaler: Whether gradients are scaled (16-mixed): theirs may overflow now and then, and such steps are left
            out by the scaler.
        step: The epoch's steps so far; more than 0 where an interrupted epoch goes on.
    """

    stage: str
    epoch: int
    learning_rate: float
    checkpoint: Path | None = None
    has_scaler: bool = False
    step: int = 0
    _unseen: list[Seen] = field(default_factory=list, init=False)

    def see(self, loss: Tensor, parameters: Iterable[nn.Parameter], batch: Any) -> None:
        """Take note of a step between its backward pass and its update.

        Args:
            loss: Scalar.
            parameters: Those of the module, with this step's gradients.
            batch: What the step was given, before it was moved to the device.

        Raises:
            FinetuneKitError: When this step, or on an accelerator an earlier one, went wrong.
        """
        self.step += 1
        norm = loss.new_zeros((), dtype=torch.float32) if self.has_scaler else gradient_norm(parameters, loss)
        seen = Seen(self.step, torch.stack([loss.detach().float(), norm]), getattr(batch, "user", None), len(batch))
        self._unseen.append(seen)
        if loss.device.type == "cpu" or len(self._unseen) == LOOK_EVERY:
            self.look()

    def look(self) -> None:
        """Wait for the steps noted so far and look at them; call it before a state is saved.

        Raises:
            FinetuneKitError: For the first step whose loss or gradient is no number.
        """
        unseen, self._unseen = self._unseen, []
        if not unseen:
            return
        for seen, (loss, norm) in zip(unseen, torch.stack([seen.numbers for seen in unseen]).tolist(), strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"the loss became {loss}" if not math.isfinite(loss) else f"the gradient's norm became {norm}"
                raise FinetuneKitError(self._told(what, seen))

    def _told(self, what: str, seen: Seen) -> str:
        if self.checkpoint is not None and self.checkpoint.exists():
            good = f"the last good state is in {self.checkpoint}"
        else:
            good = "no good state was saved yet"
        return (
            f"{self.stage}: {what} in epoch {self.epoch}, step {seen.step} ({_who(seen)}); {good}; lower "
            f"{self.stage}.learning_rate ({self.learning_rate:g})"
            f"{', or use --precision bf16-mixed or 32' if self.has_scaler else ''}, and start anew"
        )


def gradient_norm(parameters: Iterable[nn.Parameter], like: Tensor) -> Tensor:
    """Return the sum of the norms of small parameters' gradients, a scalar."""
    gradients = [
        parameter.grad
        for parameter in parameters
        if parameter.grad is not None and parameter.numel() <= SMALL and not parameter.grad.is_sparse
    ]
    if not gradients:
        return like.new_zeros((), dtype=torch.float32)
    return torch.stack(torch._foreach_norm(gradients)).float().sum()  # one kernel for all of them


def _who(seen: Seen) -> str:
    if seen.user is None:
        return f"a batch of {seen.size:,}"
    some = ", ".join(map(str, seen.user[:SHOWN].tolist()))
    return f"users {some}{', …' if len(seen.user) > SHOWN else ''} by their ids in users.parquet"
