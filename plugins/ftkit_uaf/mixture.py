"""A block that is a mixture of branches, computed without what does not count.

    E_l = Σ_i z_i(u) B_i(E_{l−1})

is Eq. 6 of UAF (`branches.py`) for two branches; z are each user's shares. Where they are hard, 0 or 1, a user's output
is that of one branch, and ∂L/∂B_i = z_i ∂L/∂E_l is 0 for all others: only the branch that is taken needs a graph, and
only for the users who take it. The shares themselves still learn from every branch, ∂L/∂z_i = ⟨∂L/∂E_l, B_i(E_{l−1})⟩,
for which the others' outputs are needed as constants, and not even that where no policy learns by gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from finetune_kit.backbone import Context

Branch = Callable[[Tensor, Context], Tensor]
"""From hidden states ``(users, length, dim)`` and a context to the same shape, or to the positions that it wants."""


def mixture(
    shares: Tensor, branches: Sequence[Branch], hidden: Tensor, context: Context, *, is_training: bool = False
) -> Tensor:
    """Return Σ_i z_i B_i(E), ``(users, length, dim)``; hard shares cost one branch per user, and its gradient alone.

    Args:
        shares: z, ``(users, branches)``.
        branches: B_i; none of them mixes users.
        hidden: E, ``(users, length, dim)``.
        context: The batch's.
        is_training: Give branches that nobody takes a gradient too, 0: without one, an optimizer would leave out their
            momentum.
    """
    if not is_hard(shares):
        learns = is_training or shares.requires_grad
        return (whole_mixture if learns else _mixture_of_shares)(shares, branches, hidden, context)
    taken = shares.detach().argmax(dim=1)  # (users,)
    counts = taken.bincount(minlength=len(branches)).tolist()
    users = taken.argsort(stable=True)  # those of one branch stand together
    back = users.argsort()
    hidden = _Reordered.apply(hidden, users, back)
    parts = zip(branches, hidden.split(counts), users.split(counts), strict=True)
    output = torch.cat([branch(part, context.rows(row)) for branch, part, row in parts if len(row)])
    if is_training and not all(counts):
        first, row = hidden[:1].detach(), context.rows(users[:1])
        unused = [branch(first, row) for branch, count in zip(branches, counts, strict=True) if not count]
        output = output + sum(other[:0].sum() for other in unused)
    if shares.requires_grad and torch.is_grad_enabled():
        others = _others(branches, hidden, users, counts, context, output[:0])
        output = _HardMixture.apply(output, shares[users], counts, *others)
    return _Reordered.apply(output, back, users)


def is_hard(shares: Tensor) -> bool:
    """Return whether every share is 0 or 1."""
    shares = shares.detach()
    return bool(((shares == 0) | (shares == 1)).all())


def whole_mixture(shares: Tensor, branches: Sequence[Branch], hidden: Tensor, context: Context) -> Tensor:
    """Return what `mixture` does, with every branch computed for everybody."""
    weights = shares[:, :, None, None].unbind(dim=1)  # (users, 1, 1) each
    first, *others = (weight * branch(hidden, context) for weight, branch in zip(weights, branches, strict=True))
    return sum(others, first)


def _mixture_of_shares(shares: Tensor, branches: Sequence[Branch], hidden: Tensor, context: Context) -> Tensor:
    """Return the same with each branch computed for the users who have a share of it."""
    users = [share.nonzero().squeeze(1) for share in shares.unbind(dim=1)]  # (some,) each
    outputs = [
        branch(hidden[some], context.rows(some)) for branch, some in zip(branches, users, strict=True) if len(some)
    ]
    weighted = [share[some, None, None] for share, some in zip(shares.unbind(dim=1), users, strict=True) if len(some)]
    parts = torch.cat([weight * output for weight, output in zip(weighted, outputs, strict=True)])
    return parts.new_zeros(len(hidden), *parts.shape[1:]).index_add(0, torch.cat(users), parts)


@torch.no_grad()
def _others(
    branches: Sequence[Branch],
    hidden: Tensor,
    users: Tensor,
    counts: Sequence[int],
    context: Context,
    nobody: Tensor,
) -> list[Tensor]:
    """Return each branch's output for the users who do not take it, in the order of ``hidden``; or ``nobody``'s."""
    outputs, start = [], 0
    for branch, count in zip(branches, counts, strict=True):
        rest, rows = (_without(part, start, count) for part in (hidden, users))
        outputs.append(branch(rest, context.rows(rows)) if len(rows) else nobody)
        start += count
    return outputs


def _without(tensor: Tensor, start: int, count: int) -> Tensor:
    """Return a tensor without ``count`` rows from ``start`` on."""
    before, after = tensor[:start], tensor[start + count :]
    return torch.cat([before, after]) if len(before) and len(after) else after if len(after) else before


class _Reordered(torch.autograd.Function):
    """Puts users into another order; its gradient puts them back, which is faster than adding rows up."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, order: Tensor, back: Tensor) -> Tensor:
        """Return the rows of ``hidden`` in an order; ``back`` is the inverse of ``order``."""
        ctx.save_for_backward(order, back)
        return hidden.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``hidden``."""
        return gradients[0].index_select(0, ctx.saved_tensors[1]), None, None


class _HardMixture(torch.autograd.Function):
    """Passes the outputs of the branches taken on, and gives the shares their gradient ``⟨∂L/∂E_l, B_i(E_{l−1})⟩``."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, shares: Tensor, counts: Sequence[int], *others: Tensor) -> Tensor:
        """Return ``output`` as it is; ``others`` are those of `_others`."""
        ctx.save_for_backward(output, *others)
        ctx.counts, ctx.dtype = counts, shares.dtype
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``output`` and ``shares``."""
        (gradient,), (output, *others) = gradients, ctx.saved_tensors
        own, start, columns = _inner_product(gradient, output, ctx.dtype), 0, []
        for count, other in zip(ctx.counts, others, strict=True):
            rest = _inner_product(_without(gradient, start, count), other, ctx.dtype)
            columns.append(torch.cat([rest[:start], own[start : start + count], rest[start:]]))
            start += count
        return gradient, torch.stack(columns, dim=1), None, *(None for _ in others)


def _inner_product(one: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ⟨one, other⟩ per user, ``(users,)``, of two ``(users, length, dim)``."""
    return (one * other).sum(dim=(1, 2), dtype=dtype)
