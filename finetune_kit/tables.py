"""Tables with a row per item: embeddings, and output layers. Their gradients can be of the rows looked up alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from finetune_kit.columns import columns, joined, summed
from finetune_kit.trainable import Trainable

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class OutputLayer(nn.Linear):
    """A linear layer ``W h + b`` with one output per item or class, whose rows can be looked up singly.

    Args:
        in_features: Width of h.
        out_features: Items or classes.
    """

    bias: nn.Parameter
    sparse: bool = False
    """Whether W's gradient is sparse where `rows` looks it up, as `torch.nn.Embedding.sparse` says of an embedding."""
    mesh: DeviceMesh | None = None
    """The processes that W is divided between, each holding some of its columns (`division.py`); None where it is not.
    What is put in and comes out is whole, the same in all."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)

    def forward(self, input: Tensor) -> Tensor:
        """Return all outputs ``(…, out_features)`` for h ``(…, in_features)``."""
        if self.mesh is None:
            return super().forward(input)
        return summed(F.linear(columns(input, self.mesh), self.weight), self.mesh) + self.bias

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows of W, ``(…, in_features)``, and what b has for them, ``(…)``, by ``index`` ``(…)`` from 0."""
        weight = F.embedding(index, self.weight, sparse=self.sparse)
        if self.mesh is not None:
            weight = joined(weight, self.mesh)
        bias = F.embedding(index, self.bias.unsqueeze(1)).squeeze(-1)  # one number per row: a dense gradient is cheap
        return weight, bias


def trained_tables(module: Trainable) -> list[nn.Embedding | OutputLayer]:
    """Return the embeddings and output layers of a module whose weight training changes, and is a weight of its own.

    Where the weight is computed from others (a parametrization), its gradient passes on through operations that take no
    sparse one.
    """
    found = []
    for part in module.modules():
        if isinstance(part, nn.Embedding | OutputLayer):
            weight = dict(part.named_parameters(recurse=False)).get("weight")
            if weight is not None and module.trains(weight):
                found.append(part)
    return found


@contextmanager
def gradients_by_row(module: Trainable, wanted: bool = True) -> Iterator[None]:
    """Run a block in which trained tables have sparse gradients, of the rows looked up, instead of dense ones.

    A table that is also used whole (tied to an output layer, in a penalty, in a softmax over all items) has a dense
    gradient all the same: autograd adds both kinds up to a dense one.

    Args:
        module: What trains in the block.
        wanted: False changes nothing.
    """
    tables = [table for table in trained_tables(module) if not table.sparse] if wanted else []
    for table in tables:
        table.sparse = True
    try:
        yield
    finally:
        for table in tables:
            table.sparse = False
