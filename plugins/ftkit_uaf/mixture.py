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
from finetune_kit.positions import Group, joined, parted

Branch = Callable[[Tensor, Context], Tensor]
"""From hidden states ``(users, length, dim)`` and a context to the same shape, or to the positions that it wants."""

EVEN = 16
"""In half precision on CPUs, groups are padded to a multiple of so many rows (`_evened`)."""


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
    if torch.compiler.is_exporting():
        return selected_mixture(shares, branches, hidden, context)
    if not is_hard(shares):
        learns = is_training or shares.requires_grad
        return (whole_mixture if learns else _mixture_of_shares)(shares, branches, hidden, context)
    taken = shares.detach().argmax(dim=1)  # (users,)
    counts = taken.bincount(minlength=len(branches)).tolist()
    rows = taken.argsort(stable=True).split(counts)
    used = [own for own, count in enumerate(counts) if count]
    if len(used) == 1:  # everybody stays where they are
        output = _output_of_group(used[0], branches, hidden, context, shares)
    else:
        groups = [Group(_evened(rows[own], hidden), counts[own]) for own in used]
        outputs = [
            _output_of_group(own, branches, part, context.rows(group.rows), shares[group.rows])
            for own, part, group in zip(used, parted(hidden, groups), groups, strict=True)
        ]
        output = joined(outputs, groups)
    if is_training and len(used) < len(branches):
        somebody = rows[used[0]][:1]
        first, row = hidden[somebody].detach(), context.rows(somebody)
        unused = [branch(first, row) for branch, count in zip(branches, counts, strict=True) if not count]
        output = output + sum(other[:0].sum() for other in unused)
    return output


def is_hard(shares: Tensor) -> bool:
    """Return whether every share is 0 or 1."""
    shares = shares.detach()
    return bool(((shares == 0) | (shares == 1)).all())


def whole_mixture(shares: Tensor, branches: Sequence[Branch], hidden: Tensor, context: Context) -> Tensor:
    """Return what `mixture` does, with every branch computed for everybody."""
    weights = shares[:, :, None, None].unbind(dim=1)  # (users, 1, 1) each
    first, *others = (weight * branch(hidden, context) for weight, branch in zip(weights, branches, strict=True))
    return sum(others, first)


def selected_mixture(shares: Tensor, branches: Sequence[Branch], hidden: Tensor, context: Context) -> Tensor:
    """Return what `mixture` does in evaluation, with no path that depends on the shares: what can be exported.

    Every branch is computed for everybody. One without a share is left out even where its output is no number.
    """
    weights = shares[:, :, None, None].unbind(dim=1)  # (users, 1, 1) each
    first, *others = (
        torch.where(weight == 0, 0.0, weight * branch(hidden, context))
        for weight, branch in zip(weights, branches, strict=True)
    )
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


def _evened(rows: Tensor, hidden: Tensor) -> Tensor:
    """Return rows of users ``(group,)``; in half precision on CPUs so many that shapes repeat, the last row again.

    There a library makes a kernel for every new shape of a product, which takes longer than the product does.
    """
    if hidden.device.type != "cpu" or hidden.dtype == torch.float32:
        return rows
    return torch.cat([rows, rows[-1:].expand(-len(rows) % EVEN)])


def _output_of_group(own: int, branches: Sequence[Branch], hidden: Tensor, context: Context, shares: Tensor) -> Tensor:
    """Return the output of the users who take one branch, ``(group, length, dim)``.

    Args:
        own: Which branch they take.
        branches: B_i.
        hidden: E of these users, ``(group, length, dim)``.
        context: Theirs.
        shares: z of theirs, ``(group, branches)``; learn from all branches, if they learn.
    """
    output = branches[own](hidden, context)
    if not (shares.requires_grad and torch.is_grad_enabled()):
        return output
    with torch.no_grad():
        others = [branch(hidden, context) for i, branch in enumerate(branches) if i != own]
    return _HardMixture.apply(output, shares, own, *others)


class _HardMixture(torch.autograd.Function):
    """Passes the output of the branch taken on, and gives the shares their gradient ``⟨∂L/∂E_l, B_i(E_{l−1})⟩``."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, shares: Tensor, own: int, *others: Tensor) -> Tensor:
        """Return ``output`` as it is; ``others`` are those of the other branches, in their order."""
        ctx.save_for_backward(*others[:own], output, *others[own:])
        ctx.dtype = shares.dtype
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``output`` and ``shares``."""
        of_shares = [_inner_product(gradients[0], output, ctx.dtype) for output in ctx.saved_tensors]
        return gradients[0], torch.stack(of_shares, dim=1), *(None for _ in ctx.saved_tensors)


def _inner_product(one: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ⟨one, other⟩ per user, ``(users,)``, of two ``(users, length, dim)``."""
    return (one * other).sum(dim=1).sum(dim=-1, dtype=dtype)  # in two steps, else all would be converted first
