"""Tensors of which each process has some columns, and how they become whole; by torch's DTensor, gradients included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def own_columns(table: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return a process's columns of a whole table ``(rows, dim)``, a copy."""
    return table.chunk(mesh.size(), dim=1)[mesh.get_local_rank()].clone()


def columns(whole: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return a process's columns ``(…, dim / N)`` of what is whole and the same in every process, ``(…, dim)``.

    Its gradient is put together from all processes'; they call it at once.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard  # takes a second

    everywhere = DTensor.from_local(whole, mesh, [Replicate()], run_check=False)
    return everywhere.redistribute(placements=[Shard(whole.dim() - 1)]).to_local()


def joined(part: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return the columns ``(…, dim)`` of which each process has some, ``(…, dim / N)``; all processes call it at once.

    Its gradient is the own columns' of one that is the same in every process.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    divided = DTensor.from_local(part, mesh, [Shard(part.dim() - 1)], run_check=False)
    return divided.redistribute(placements=[Replicate()]).to_local()


def summed(part: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return the sum of what each process has, all of one shape; all processes call it at once.

    Its gradient is, in every process, the sum's, which is the same everywhere.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate

    partial = DTensor.from_local(part, mesh, [Partial()], run_check=False)
    return partial.redistribute(placements=[Replicate()]).to_local()
