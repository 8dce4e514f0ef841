"""What each process made of its share of a batch's users, put together in all of them, with its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from finetune_kit.errors import PluginError

if TYPE_CHECKING:
    from finetune_kit.processes import Processes
    from finetune_kit.strategy import Encoded


def gathered(encoded: Encoded, num_rows: int, total: int, processes: Processes) -> Encoded:
    """Return what all processes together made of a batch's users, given what this one made of its share.

    Every process computes the same loss from it, and gradients are averaged over processes afterwards. So a process
    hands on the gradient of its own rows times the number of processes: the average of an encoder's gradients is then
    their sum over all rows, and that of a parameter which only the loss uses is what each process has.

    Args:
        encoded: Of this process's share.
        num_rows: The rows of it that count, the first ones; 0 for a process without a user.
        total: Users of the whole batch.
        processes: Who shares it.

    Raises:
        PluginError: When something in it is not one row per user.
    """
    values = {field.name: getattr(encoded, field.name) for field in fields(encoded)}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():
        if value.dim() == 0 or len(value) < num_rows:
            raise PluginError(
                f"{type(encoded).__name__}.{name} is {tuple(value.shape)} for {num_rows} users; in several processes "
                "it must have one row per user. Train in one process, or compute it in `loss`"
            )
    if num_rows == 0:  # nobody's: not even a gradient of zero, by which an optimizer would move what nobody used
        tensors = {name: value[:0].detach() for name, value in tensors.items()}
    tensors = {name: value[:num_rows] for name, value in tensors.items()}
    if not tensors["vectors"].requires_grad and torch.is_grad_enabled():
        tensors["vectors"] = tensors["vectors"].detach().requires_grad_()  # all processes go backward, or none
    whole = _Gather.apply(processes, [part.stop - part.start for part in processes.shares(total)], *tensors.values())
    return replace(encoded, **dict(zip(tensors, whole, strict=True)))


class _Gather(torch.autograd.Function):
    """Rows of all processes, one's after the other's; backward, each has its own rows' gradient times their number."""

    @staticmethod
    def forward(ctx: Any, processes: Processes, counts: Sequence[int], *own: Tensor) -> tuple[Tensor, ...]:
        """Return the whole tensors, ``(sum of counts, …)`` each, of this process's, ``(its count, …)``."""
        ctx.set_materialize_grads(False)
        ctx.size, start = processes.size, sum(counts[: processes.rank])
        ctx.rows = slice(start, start + counts[processes.rank])
        whole = gather_rows(own, counts)
        ctx.mark_non_differentiable(
            *(tensor for tensor, part in zip(whole, own, strict=True) if not part.requires_grad)
        )
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        """Return the gradient of this process's rows; nothing is sent."""
        own = (None if gradient is None else gradient[ctx.rows] * ctx.size for gradient in gradients)
        return None, None, *own


def gather_rows(own: Sequence[Tensor], counts: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the rows of all processes, one's after the other's, of several tensors that are sent as one.

    Args:
        own: This process's tensors, ``(its count, …)``; all but the count is alike in all processes.
        counts: Rows of each process.
    """
    bytes_of = [_as_bytes(tensor) for tensor in own]  # (rows, bytes of a row), whatever the type: gloo lacks some
    message = torch.cat(bytes_of, dim=1)
    padded = message.new_zeros(max(counts), message.shape[1])
    padded[: len(message)] = message
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    whole = torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])
    parts = whole.split([part.shape[1] for part in bytes_of], dim=1)
    return tuple(
        part.contiguous().flatten().view(tensor.dtype).view(-1, *tensor.shape[1:])
        for part, tensor in zip(parts, own, strict=True)
    )


def _as_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of each row, ``(rows, bytes)`` uint8."""
    width = tensor[0].numel() if len(tensor) else torch.empty(tensor.shape[1:], device="meta").numel()
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    return flat.view(len(tensor), width * tensor.element_size())
