"""Tables with a row per item, divided between processes: each holds some columns of all rows.

For tables that no single device can hold, with their gradients and moments. All processes compute the same batches, and
so look up the same items: each looks its own columns up, and torch's DTensor joins them,

    E[x] = [E⁽¹⁾[x], …, E⁽ᴺ⁾[x]],    E⁽ʳ⁾ of shape (items, dim / N)

so N processes hold N times as many items, and are no faster. By columns, a look-up is `torch.nn.Embedding`'s own, and
so are sparse gradients; Adam computes with single numbers, so each process updates its columns by itself, and the
numbers are those of a single process. By rows (`torch.distributed.tensor.parallel.RowwiseParallel`), the gradient of a
DTensor is as large as the whole table in every process, which is what was to be avoided, and never sparse.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from finetune_kit.columns import joined, own_columns
from finetune_kit.errors import OptionError
from finetune_kit.tables import OutputLayer

if TYPE_CHECKING:
    from typing import TypeGuard

    from torch.distributed.device_mesh import DeviceMesh


ROWS = 2**18
"""Rows of a divided table that are put together at once on the devices."""


@dataclass(frozen=True)
class Division:
    """Tables divided between processes.

    Args:
        names: Of their weights, as the state of the module has them.
        mesh: The processes, in one dimension.
    """

    names: frozenset[str]
    mesh: DeviceMesh

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors by name on the CPU, divided ones put together; all processes call it at once.

        The first process alone gets them; the others, which would hold as much, get nothing.
        """
        is_first = self.mesh.get_local_rank() == 0
        together = {}
        for name, tensor in state.items():
            parts = (
                [joined(rows, self.mesh).cpu() for rows in tensor.split(ROWS)] if name in self.names else [tensor.cpu()]
            )
            together |= {name: torch.cat(parts)} if is_first else {}
        return together

    def own(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors by name with a process's own columns of those that are divided."""
        mesh = self.mesh
        return {name: own_columns(part, mesh) if name in self.names else part for name, part in state.items()}


def divide_tables(module: nn.Module, num_items: Collection[int], mesh: DeviceMesh) -> Division:
    """Leave a process its columns of the tables of a module that have a row per item.

    Each process builds the module alike, on the CPU, and calls this before it moves it to its device.

    Args:
        module: What holds the tables: embeddings, which have a row of padding, and output layers.
        num_items: Source items, target items.
        mesh: The processes, in one dimension.

    Raises:
        OptionError: When a table's width is no multiple of the number of processes.
    """
    names = set()
    for name, part in module.named_modules():
        if not _has_row_per_item(part, num_items):
            continue
        width = part.weight.shape[1]
        if width % mesh.size():
            raise OptionError(
                f"{name} has {width} columns, which {mesh.size()} processes can't share alike; set run.devices to a "
                "divisor, or backbone.dim to a multiple"
            )
        part.weight = nn.Parameter(own_columns(part.weight.detach(), mesh), requires_grad=part.weight.requires_grad)
        if isinstance(part, OutputLayer):
            part.mesh = mesh
        else:
            part.register_forward_hook(lambda part, given, vectors: joined(vectors, mesh))
        names.add(f"{name}.weight")
    return Division(frozenset(names), mesh)


def _has_row_per_item(part: nn.Module, num_items: Collection[int]) -> TypeGuard[nn.Embedding | OutputLayer]:
    if "weight" not in part._parameters:
        return False  # computed from others, such as a low-rank change
    if isinstance(part, nn.Embedding):
        return part.num_embeddings - 1 in num_items
    return isinstance(part, OutputLayer) and part.out_features in num_items
