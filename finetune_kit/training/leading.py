"""What the still stages of a strategy's backbone make of each user, computed once and kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from finetune_kit.backbone import Leading
from finetune_kit.files import storing

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from finetune_kit.strategy import Strategy


@dataclass
class LeadingStages:
    """Tells a strategy what its still stages (`Strategy.still_stages`) make of users, while it is entered (``with``).

    All users are computed when the first are asked for, on the device and in the precision of then. What is known is
    forgotten once these stages change: another number of them stands still, or their tensors were written to.

    Args:
        strategy: Whose stages.
        users: The users that may be asked for, ``(n,)`` int64, ascending.
        sequences: Returns the item ids of some of them, ``(users, length)``, given theirs.
        memory: MiB up to which outputs stay in memory; more are memory-mapped.
        file: Where they are mapped, for as long as this is entered.
        num_users: Users computed at once; always the same together, so that nothing depends on the batches.
    """

    strategy: Strategy
    users: np.ndarray
    sequences: Callable[[np.ndarray], np.ndarray]
    memory: int
    file: Path
    num_users: int = 512
    num_rounds: int = field(default=0, init=False)
    """How often all users were computed."""
    _is_sure: bool = field(default=False, init=False)
    _num_stages: int = field(default=0, init=False)
    _version: tuple[tuple[int, int], ...] = field(default=(), init=False)
    _known: Tensor | None = field(default=None, init=False)
    _place: Tensor = field(init=False)

    def __enter__(self) -> Self:
        """Let the strategy ask."""
        self.strategy.leading = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Forget everything, also what is on disk."""
        self.strategy.leading = None
        self._forget()

    def doubt(self) -> None:
        """Look anew, before the next answer, whether what is known still holds: an epoch or an evaluation begins."""
        self._is_sure = False

    def _refresh(self) -> None:
        """Forget what is known if it no longer holds."""
        num_stages = self.strategy.still_stages
        parts = [part for stage in self.strategy.backbone_stages()[:num_stages] for part in stage]
        tensors = [tensor for part in parts for tensor in (*part.parameters(False), *part.buffers(False))]
        version = tuple((id(tensor), tensor._version) for tensor in tensors)
        if (num_stages, version) != (self._num_stages, self._version):
            self._forget()
            self._num_stages, self._version = num_stages, version
        self._is_sure = True

    def __call__(self, user: Tensor) -> Leading | None:
        """Return what is known of users ``(users,)``; None where no block stands still, as an embedding costs nothing.

        Args:
            user: Ids, each among ``users``.
        """
        if not self._is_sure:
            self._refresh()
        if self._num_stages < 2:
            return None
        if self._known is None:
            self._known = self._compute(user.device)
            place = np.zeros(self.users[-1] + 1, dtype=np.int64)  # by user id
            place[self.users] = np.arange(len(self.users))
            self._place = torch.from_numpy(place).to(self._known.device)
        place = self._place[user.to(self._known.device)]
        return Leading(self._known.index_select(0, place).to(user.device), self._num_stages)

    @torch.no_grad()
    def _compute(self, device: torch.device) -> Tensor:
        """Return the output of the still stages, ``(all users, …)``."""
        known, start = None, 0
        for hidden in self._parts(device):
            if known is None:
                known = self._room(hidden)
            known[start : start + len(hidden)] = hidden
            start += len(hidden)
        self.num_rounds += 1
        assert known is not None, "somebody was asked for, so there are users"
        return known

    def _parts(self, device: torch.device) -> Iterator[Tensor]:
        """Yield the output of the still stages, some users at a time, ``(users, …)``."""
        for start in range(0, len(self.users), self.num_users):
            sequence = torch.from_numpy(self.sequences(self.users[start : start + self.num_users])).to(device)
            yield self.strategy.backbone.lead(sequence, self._num_stages, pooling=self.strategy.pooling).hidden

    def _room(self, some: Tensor) -> Tensor:
        """Return room for all users, given the output for some: on their device, or on disk where it would not fit."""
        shape = (len(self.users), *some.shape[1:])
        size = len(self.users) * some[0].numel()
        if size * some.element_size() <= self.memory * 2**20:
            return some.new_empty(shape)
        with storing(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("wb") as file:  # on a full disk, a write to a map that has holes would kill the process
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    os.posix_fallocate(file.fileno(), 0, size * some.element_size())
        return torch.from_file(str(self.file), shared=True, size=size, dtype=some.dtype).view(shape)

    def _forget(self) -> None:
        self._known = None
        self.file.unlink(missing_ok=True)
