"""Weights for another catalogue: rows of items that both have keep their values, whatever strategy they belong to.

Which dimensions of which tensors are indexed by items is not declared, it is found: a model is built for (S, T) source
and target items, for (S + 1, T) and for (S, T + 1), and what grows by one is indexed by them. That is exact, also where
sizes are alike by chance, and holds for anybody's strategy or backbone. A dimension as long as the catalogue counts
items from 0; one longer by one has the padding in front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finetune_kit.data.matched import Matched
from finetune_kit.errors import CheckpointError

Domain = Literal["source", "target"]
Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Axis:
    """A dimension of a tensor that is indexed by items.

    Args:
        dim: Which dimension.
        domain: Of which domain.
        offset: Rows before that of the first item: 1 for padding, or 0.
    """

    dim: int
    domain: Domain
    offset: int


def find_axes(shapes_for: Callable[[int, int], Shapes], num_source: int, num_target: int) -> dict[str, list[Axis]]:
    """Return, for each tensor, its dimensions that are indexed by items.

    Args:
        shapes_for: From numbers of source and target items to the shapes of a model made for them, by name.
        num_source: Source items of the model in question.
        num_target: Its target items.

    Raises:
        CheckpointError: Naming a tensor that changes with the number of items otherwise than by one row per item.
    """
    shapes = shapes_for(num_source, num_target)
    axes: dict[str, list[Axis]] = {name: [] for name in shapes}
    one_more: tuple[tuple[Domain, int, Shapes], ...] = (
        ("source", num_source, shapes_for(num_source + 1, num_target)),
        ("target", num_target, shapes_for(num_source, num_target + 1)),
    )
    for domain, size, larger in one_more:
        for name in sorted(shapes.keys() | larger.keys()):
            if name not in shapes or name not in larger or len(shapes[name]) != len(larger[name]):
                raise CheckpointError(f"{name!r} is not there for every number of {domain} items; it can't grow")
            for dim, (one, other) in enumerate(zip(shapes[name], larger[name], strict=True)):
                if one == other:
                    continue
                if other != one + 1 or one - size not in (0, 1):
                    raise CheckpointError(
                        f"{name!r} has {one} rows for {size} {domain} items and {other} for {size + 1}; it can grow "
                        "only with one row per item, or one more for padding in front"
                    )
                axes[name].append(Axis(dim, domain, one - size))
    return axes


def carry_over(
    old: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    axes: Mapping[str, list[Axis]],
    matched: Mapping[Domain, Matched],
) -> dict[str, Tensor]:
    """Return the old tensors for the new catalogues: rows of known items are the old ones, those of new items fresh.

    Args:
        old: Tensors of a model for the old catalogues, by name.
        fresh: Those of the same model made for the new catalogues.
        axes: What `find_axes` says of the model.
        matched: Source and target items, old and new.

    Raises:
        CheckpointError: Naming a tensor whose shape is not what the catalogues ask for.
    """
    carried = {}
    for name, tensor in old.items():
        if name not in axes or name not in fresh:
            raise CheckpointError(f"{name!r} is not in the model for the new items; its options must be the same")
        wanted = list(tensor.shape)
        for axis in axes[name]:
            wanted[axis.dim] = matched[axis.domain].num_new + axis.offset
        if list(fresh[name].shape) != wanted:
            raise CheckpointError(
                f"{name!r} is {tuple(fresh[name].shape)} in the model for the new items, not {tuple(wanted)}; "
                "its options must be the same"
            )
        rows = [(axis.dim, *_rows(matched[axis.domain], axis.offset)) for axis in axes[name]]
        carried[name] = _placed(fresh[name].detach(), tensor.to(fresh[name].dtype), rows)
    return carried


def _rows(matched: Matched, offset: int) -> tuple[Tensor, Tensor]:
    """Return new and old rows, ``(offset + known,)`` int64 each, of padding and known items."""
    padding = torch.arange(offset)
    new, old = (torch.cat([padding, torch.from_numpy(side) + offset]) for side in (matched.new, matched.old))
    return new, old


def _placed(fresh: Tensor, old: Tensor, rows: list[tuple[int, Tensor, Tensor]]) -> Tensor:
    """Return ``fresh`` with old values wherever all dimensions have a known item."""
    if not rows:
        return old.clone()
    (dim, new_rows, old_rows), *rest = rows
    part = _placed(fresh.index_select(dim, new_rows), old.index_select(dim, old_rows), rest)
    return fresh.index_copy(dim, new_rows, part)
