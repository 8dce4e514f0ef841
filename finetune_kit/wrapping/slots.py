"""What stands in the places of a wrapped model's blocks, and what it notes there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from finetune_kit.backbone import Context
from finetune_kit.errors import PluginError


@dataclass(frozen=True)
class Call:
    """What a block was called with; at ``place`` of ``args`` stood the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: int | str

    def on(self, block: nn.Module, hidden: Tensor) -> Any:
        """Return what a block makes of hidden states, all else being as it was."""
        if isinstance(self.place, str):
            return block(*self.args, **{**self.kwargs, self.place: hidden})
        return block(*self.args[: self.place], hidden, *self.args[self.place + 1 :], **self.kwargs)

    def tensors(self) -> list[Tensor]:
        """Return the tensors among all arguments."""
        found: list[Tensor] = []
        _map_tensors((self.args, self.kwargs), lambda tensor: found.append(tensor) or tensor)
        return found

    def rows(self, users: Tensor, rows_per_user: Sequence[int]) -> Call:
        """Return the call for some of the batch's users, by their rows ``(some,)``."""
        remaining = iter(rows_per_user)

        def of_users(tensor: Tensor) -> Tensor:
            if not (num_rows := next(remaining)):
                return tensor
            return tensor.unflatten(0, (-1, num_rows))[users].flatten(0, 1)

        args, kwargs = _map_tensors((self.args, self.kwargs), of_users)
        return replace(self, args=args, kwargs=kwargs)


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return tuples, lists and dictionaries with a function applied to the tensors in them, first to last."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (tuple, list):
        return type(value)(_map_tensors(part, function) for part in value)
    if isinstance(value, dict):
        return {name: _map_tensors(part, function) for name, part in value.items()}
    return value


@dataclass(frozen=True)
class WrappedContext(Context):
    """What the blocks of a wrapped model are handed beside the hidden states.

    Args:
        calls: One per block.
        shift: ``(users,)``, how far each sequence was moved to the left for a model that wants padding on the right.
        rows_per_user: Per block and tensor among its arguments, how many of its first dimension's rows are one user's
            (an attention mask may have one per head); 0 for a tensor that all users share.
    """

    calls: tuple[Call, ...] = ()
    shift: Tensor | None = None
    rows_per_user: tuple[tuple[int, ...], ...] = ()

    def trailing(self, length: int) -> WrappedContext:
        """Return itself: a wrapped block may look at any position, so it is always given all."""
        return self

    def rows(self, users: Tensor) -> WrappedContext:
        """Return the context of some of the batch's users, by their rows ``(some,)`` int64."""
        return replace(
            self,
            mask=None if self.mask is None else self.mask[users],
            calls=tuple(
                call.rows(users, per_user) for call, per_user in zip(self.calls, self.rows_per_user, strict=True)
            ),
            shift=None if self.shift is None else self.shift[users],
        )


def rows_per_user(
    calls: Sequence[Call], num_users: int, others: Sequence[Call], other_num_users: int
) -> tuple[tuple[int, ...], ...]:
    """Return `WrappedContext.rows_per_user`, from the calls of two batches of different size."""
    return tuple(
        tuple(
            one.shape[0] // num_users
            if one.dim()
            and one.shape[0] != other.shape[0]
            and one.shape[0] * other_num_users == other.shape[0] * num_users
            else 0
            for one, other in zip(call.tensors(), same_call.tensors(), strict=True)
        )
        for call, same_call in zip(calls, others, strict=True)
    )


class LastBlockReached(Exception):
    """Ends a run of the model whose only purpose was to find what the blocks are handed."""


@dataclass
class Recording:
    """Where slots note their calls; hidden states are those that the first block was given."""

    num_blocks: int
    calls: list[Call] = field(default_factory=list)
    hidden: Tensor | None = None


class Slot(nn.Module):
    """Stands in the model where a block stood: notes how it is called and lets hidden states through.

    Args:
        k: Index of the block.
        block: What stood there; asked for attributes that the model reads off its blocks, never registered.
    """

    def __init__(self, k: int, block: WrappedBlock) -> None:
        super().__init__()
        self.k = k
        self.recording: Recording | None = None
        self._block = (block,)  # in a tuple, so that its parameters are not the slot's too

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the block: nn.TransformerEncoder, e.g., looks into its first layer."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"][0].block, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the hidden states as they came, in the form in which the block returns them."""
        assert self.recording is not None, "a slot is only called by WrappedBackbone.start"
        place = _place_of_hidden(args, kwargs)
        hidden = kwargs[place] if isinstance(place, str) else args[place]
        if len(self.recording.calls) != self.k:
            raise PluginError(
                f"block {self.k} was called after {len(self.recording.calls)} others; blocks must be called once each, "
                "in the order in which wrap was given them"
            )
        if self.recording.hidden is None:
            self.recording.hidden = hidden
        self.recording.calls.append(Call(args, kwargs, place))
        if len(self.recording.calls) == self.recording.num_blocks:
            raise LastBlockReached
        return self._block[0].in_its_form(hidden)


def _place_of_hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | str:
    """Return where the first three-dimensional tensor of floating-point numbers stands: the hidden states."""
    for place, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point():
            return place
    raise PluginError("a block was called without hidden states (users, length, dim); are these the residual blocks?")


class WrappedBlock(nn.Module):
    """A block of a wrapped model; calls it with what the model would have handed it.

    Args:
        k: Its index.
        block: The model's own.
        num_outputs: Length of the tuple that it returns, hidden states first; 0 if it returns them alone.
        sites: Names of submodules of ``block`` at which a patch can be put.
    """

    def __init__(self, k: int, block: nn.Module, num_outputs: int, sites: Sequence[str] = ()) -> None:
        super().__init__()
        self.k = k
        self.block = block
        self.num_outputs = num_outputs
        self.sites = tuple(f"block.{site}" for site in sites)

    def forward(self, hidden: Tensor, context: WrappedContext) -> Tensor:
        """Return the shape of ``hidden`` ``(users, length, dim)``."""
        output = context.calls[self.k].on(self.block, hidden)
        return output[0] if self.num_outputs else output

    def in_its_form(self, hidden: Tensor) -> Any:
        """Return hidden states as the block returns them: alone, or first in a tuple."""
        return (hidden, *[None] * (self.num_outputs - 1)) if self.num_outputs else hidden


def rolled(values: Tensor, shift: Tensor) -> Tensor:
    """Return ``(users, length, …)`` with each user's positions moved to the left, around the end.

    Args:
        values: ``(users, length)`` or ``(users, length, dim)``.
        shift: ``(users,)``, by how many positions; negative ones move to the right.
    """
    length = values.shape[1]
    source = (torch.arange(length, device=values.device) + shift.unsqueeze(1)) % length  # (users, length)
    if values.dim() == 3:
        source = source.unsqueeze(-1).expand(-1, -1, values.shape[-1])
    return values.gather(1, source)
