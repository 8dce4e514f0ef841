"""How the blocks of a wrapped model are called: what each is handed beside the hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor, nn

from finetune_kit.backbone import Context

Path: TypeAlias = tuple[Any, ...]
"""Where a tensor stands among a call's arguments: their positions and names, outermost first."""


@dataclass(frozen=True)
class Call:
    """The arguments of one block; the hidden states stood at ``place``, a position or a name."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: int | str

    def on(self, block: nn.Module, hidden: Tensor) -> Any:
        """Return what a block makes of hidden states ``(users, length, dim)``, all else being as it was."""
        if isinstance(self.place, str):
            return block(*self.args, **{**self.kwargs, self.place: hidden})
        return block(*self.args[: self.place], hidden, *self.args[self.place + 1 :], **self.kwargs)

    def tensors(self) -> dict[Path, Tensor]:
        """Return the tensors among the arguments, the hidden states too."""
        found: dict[Path, Tensor] = {}
        _map_tensors((self.args, self.kwargs), lambda path, tensor: found.setdefault(path, tensor))
        return found

    def rows(self, users: Tensor, num_users: int, rows_per_user: Mapping[Path, int]) -> Call:
        """Return the call for some of a batch's ``num_users`` users, by their rows ``(some,)``."""

        def of_users(path: Path, tensor: Tensor) -> Tensor:
            num_rows = rows_per_user.get(path, 1)  # one, for an argument that was not there when wrap looked
            if not tensor.dim() or tensor.shape[0] != num_users * num_rows:
                return tensor  # all users share it
            return tensor.unflatten(0, (num_users, num_rows))[users].flatten(0, 1)

        args, kwargs = _map_tensors((self.args, self.kwargs), of_users)
        return replace(self, args=args, kwargs=kwargs)


def rows_per_user(one: Call, num_users: int, other: Call, other_num_users: int) -> dict[Path, int]:
    """Return, for each tensor that a block is handed, how many of its first dimension's rows are one user's.

    0 stands for a tensor that all users share. An attention mask may have one row per user and head. Batches of two
    sizes tell a user's rows from a dimension, e.g. the length, that happens to be as large as the batch.
    """
    found, others = {}, other.tensors()
    for path, tensor in one.tensors().items():
        if path in others:
            sizes = [value.shape[0] if value.dim() else 0 for value in (tensor, others[path])]
            grows = sizes[0] * other_num_users == sizes[1] * num_users
            found[path] = sizes[0] // num_users if grows else 0
    return found


def _map_tensors(value: Any, function: Callable[[Path, Tensor], Tensor], path: Path = ()) -> Any:
    """Return tuples, lists and dictionaries with a function of path and tensor applied to the tensors in them."""
    if isinstance(value, Tensor):
        return function(path, value)
    if type(value) in (tuple, list):
        return type(value)(_map_tensors(part, function, (*path, place)) for place, part in enumerate(value))
    if isinstance(value, dict):
        return {name: _map_tensors(part, function, (*path, name)) for name, part in value.items()}
    return value


@dataclass(frozen=True)
class WrappedContext(Context):
    """What the blocks of a wrapped model are handed beside the hidden states.

    ``mask`` and the hidden states between blocks have positions as the model arranges them: padding on the right for
    a model that wants it there.

    Args:
        calls: One per block.
        shift: ``(users,)``, how far each sequence was moved to the left for a model that wants padding on the right.
        rows_per_user: What `rows_per_user` returned, per block.
    """

    calls: tuple[Call, ...] = ()
    shift: Tensor | None = None
    rows_per_user: Sequence[Mapping[Path, int]] = ()

    def trailing(self, length: int) -> WrappedContext:
        """Return itself: a wrapped block may look at any position, so it is always given all."""
        return self

    def rows(self, users: Tensor) -> WrappedContext:
        """Return the context of some of the batch's users, by their rows ``(some,)`` int64."""
        assert self.mask is not None
        calls = zip(self.calls, self.rows_per_user, strict=True)
        return replace(
            self,
            mask=self.mask[users],
            calls=tuple(call.rows(users, len(self.mask), per_user) for call, per_user in calls),
            shift=None if self.shift is None else self.shift[users],
        )
