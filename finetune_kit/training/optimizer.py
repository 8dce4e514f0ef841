"""The optimizers: Adam, and Adam that leaves alone the rows of a table that a batch has not looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finetune_kit.sections import Optimizer


def make_optimizer(
    name: Optimizer, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, device: torch.device
) -> torch.optim.Adam:
    """Return the optimizer of a name, for parameters that train on a device."""
    # One fused kernel per step where the device has it; the pretend device of the tests does not.
    fused = device.type in ("cpu", "cuda")
    if name == "lazy-adam":
        assert not weight_decay, "lazy-adam has no weight decay; the options refuse it"
        return LazyAdam(parameters, learning_rate, fused=fused)
    return torch.optim.Adam(parameters, learning_rate, weight_decay=weight_decay, fused=fused)


class LazyAdam(torch.optim.Adam):
    """Adam (Kingma & Ba, ICLR 2015) that updates, where a gradient is sparse, just the rows that are in it.

    For those rows of a table w, with gradient g, at the table's t-th step:

        m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²
        w ← w − η · m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε)

    Parameters with a dense gradient are Adam's. All have the same state, so a parameter may change from one kind to the
    other.

    Differences from Adam: m and v of a row that is not in a batch don't decay, and the row does not go on moving by
    them; Adam's would. A row's first update is exactly Adam's. It is the rule of `torch.optim.SparseAdam`, which takes
    sparse gradients alone and adds ε to √v before the correction.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, *, fused: bool = False) -> None:
        super().__init__(parameters, learning_rate, fused=fused)
        self._step_supports_amp_scaling = False  # a loss scale must be out of all gradients before the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyrefly: ignore[bad-override]  (no closures)
        """Update all parameters that have a gradient; sparse gradients are gone afterwards."""
        assert closure is None, "lazy-adam takes no closure"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._update_rows(parameter, parameter.grad.coalesce(), group)
                    parameter.grad = None  # Adam's own step passes it over
        super().step()

    def _update_rows(self, table: nn.Parameter, gradient: Tensor, group: Mapping[str, Any]) -> None:
        """Update the rows of a table ``(rows, dim)`` that are in its gradient, sparse and each row once."""
        state = self.state[table] or self._begin(table, group)
        rows, g = gradient.indices()[0], gradient.values()  # (some,), (some, dim)
        beta1, beta2 = group["betas"]
        t = state["step"].add_(1).double()
        m = state["exp_avg"][rows].lerp_(g, 1 - beta1)
        v = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = m, v
        table[rows] -= group["lr"] * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + group["eps"])

    def _begin(self, table: nn.Parameter, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the state of a table before its first step, as Adam begins it."""
        state = self.state[table]
        state["step"] = torch.zeros((), device=table.device if group["fused"] else "cpu")
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        return state
