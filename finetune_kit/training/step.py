"""One training step up to its gradients: of a batch in one piece or in parts, in one process or in several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import Precision
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from finetune_kit.gathering import gather_rows
from finetune_kit.processes import Processes, here
from finetune_kit.tables import trained_tables
from finetune_kit.trainable import Trainable


class SharedStep(nn.Module):
    """What data-parallel training wraps: its ``forward`` is this process's share of a step.

    Args:
        module: What trains.
        processes: Who shares its batches.
    """

    def __init__(self, module: Trainable, processes: Processes) -> None:
        super().__init__()
        self.module = module
        self._processes = processes

    def forward(self, batch: Any) -> Tensor:
        """Return the loss of a prepared batch that all processes have, or this process's part of it."""
        return self.module.shared_loss(batch, self._processes)


class Step:
    """Computes gradients; the same in every process, and up to rounding those of the whole batch in one.

    Args:
        module: What trains.
        optimizer: Its optimizer; use the attribute ``optimizer`` from then on.
        fabric: Device, precision and processes.
        accumulate: Parts that a batch is computed in, one after the other; memory holds one.
        by_row: Whether tables have sparse gradients.
    """

    def __init__(
        self,
        module: Trainable,
        optimizer: torch.optim.Optimizer,
        fabric: Fabric,
        *,
        accumulate: int = 1,
        by_row: bool = False,
    ) -> None:
        self._module, self._fabric, self._accumulate, self._processes = module, fabric, accumulate, here()
        self._tables: list[nn.Parameter] = []
        self._forward: Any
        if fabric.world_size > 1:
            shared = SharedStep(module, self._processes)
            self._tables = _leave_out(shared, by_row=by_row)
            with _all_awake(module):
                self._forward, self.optimizer = fabric.setup(shared, optimizer)
        else:
            self._forward, self.optimizer = fabric.setup(module, optimizer)
            if isinstance(fabric.strategy, SingleDeviceStrategy) and type(fabric.strategy.precision) is Precision:
                self._forward = module  # in float32 the wrapper does nothing, and takes its time for it

    def gradients(self, batch: Any) -> Tensor:
        """Compute a batch's gradients; return its loss, a scalar without a graph, alike in all processes."""
        batch = batch.to(self._fabric.device)
        if self._accumulate == 1 and self._processes.size == 1:
            loss = self._forward(batch)
            self._fabric.backward(loss)
            return loss.detach()
        loss = self._in_parts(self._module.prepared(batch))
        if self._processes.size > 1:
            average_tables(self._tables, self._processes)
            dist.all_reduce(loss)
            loss /= self._processes.size
        return loss

    def _in_parts(self, batch: Any) -> Tensor:
        """Add up the gradients of a prepared batch's parts; return the sum of their losses in this process."""
        parts = self._module.parts(batch, self._accumulate) if self._accumulate > 1 else [(batch, 1.0)]
        total = torch.zeros((), device=self._fabric.device)
        for n, (part, weight) in enumerate(parts, start=1):
            is_last = n == len(parts)
            with self._alone(not is_last):
                loss = self._forward(part) * weight
                self._fabric.backward(loss)
            total += loss.detach()
        return total

    @contextmanager
    def _alone(self, wanted: bool) -> Iterator[None]:
        """Run a block after whose backward pass gradients are not yet averaged over processes, if wanted."""
        if not wanted or self._processes.size == 1:
            yield
            return
        with self._fabric.no_backward_sync(self._forward):
            yield


def _leave_out(shared: SharedStep, *, by_row: bool) -> list[nn.Parameter]:
    """Keep from DistributedDataParallel what it can't average or need not send; return tables with sparse gradients.

    On a GPU it averages no sparse gradients, and in every step it would send buffers that never change.
    """
    module = shared.module
    tables = [table.weight for table in trained_tables(module)] if by_row else []
    changing, trained = module.state_dict(keep_vars=True), module.trained_state()
    left = {id(table) for table in tables}
    sent = {id(tensor) for name, tensor in changing.items() if name in trained}
    names = [name for name, tensor in shared.named_parameters(remove_duplicate=False) if id(tensor) in left]
    names += [name for name, tensor in shared.named_buffers(remove_duplicate=False) if id(tensor) not in sent]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(shared, names)
    return tables  # pyrefly: ignore[bad-return]  (weights are parameters)


@contextmanager
def _all_awake(module: Trainable) -> Iterator[None]:
    """Run a block in which everything that trains at some time has a gradient: what rests now is averaged later."""
    resting = [part for part in module.parameters() if module.trains(part) and not part.requires_grad]
    for parameter in resting:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in resting:
            parameter.requires_grad_(False)


@torch.no_grad()
def average_tables(tables: Iterable[nn.Parameter], processes: Processes) -> None:
    """Average the gradients of tables over processes: of the rows looked up alone, where all are sparse.

    A table that nobody has used keeps no gradient, and one with a dense gradient in some process has one in all.
    """
    tables = list(tables)
    if not tables:
        return
    own = [_kind(table) for table in tables]
    found = gather_rows([torch.tensor(own, device=tables[0].device)], [len(tables)] * processes.size)[0]
    kinds, counts = found.view(processes.size, len(tables), 2).unbind(dim=2)  # (processes, tables)
    for table, kind, rows in zip(tables, kinds.amax(dim=0).tolist(), counts.T.tolist(), strict=True):
        if kind == SPARSE:
            table.grad = _average_rows(table, rows)
        elif kind == DENSE:
            gradient = torch.zeros_like(table) if table.grad is None else table.grad.to_dense()
            dist.all_reduce(gradient)
            table.grad = gradient.div_(processes.size)


NONE, SPARSE, DENSE = range(3)
"""Kinds of gradients."""


def _kind(table: nn.Parameter) -> tuple[int, int]:
    """Return which kind of gradient a table has, and if it is sparse of how many rows, each then in it once."""
    if table.grad is None:
        return NONE, 0
    if not table.grad.is_sparse:
        return DENSE, 0
    table.grad = table.grad.coalesce()
    return SPARSE, len(table.grad.values())


def _average_rows(table: nn.Parameter, counts: Sequence[int]) -> Tensor:
    """Return the average of sparse gradients, of so many rows in each process."""
    if table.grad is None:
        rows, values = torch.empty(0, dtype=torch.int64, device=table.device), table.new_empty(0, table.shape[1])
    else:
        rows, values = table.grad.indices()[0], table.grad.values()
    rows, values = gather_rows((rows, values), counts)
    return torch.sparse_coo_tensor(rows.unsqueeze(0), values / len(counts), table.shape, check_invariants=False)
