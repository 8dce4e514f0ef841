"""L2-SP: train everything, and pull what was pre-trained back to where it started.

Li, Grandvalet, Davoine: *Explicit Inductive Bias for Transfer Learning with Convolutional Networks*, ICML 2018,
https://arxiv.org/abs/1802.01483. With S the part of the network that was pre-trained and S̄ the part that is new, the
penalty added to the task's loss is

    Ω(w) = α/2 ‖w_S − w_S⁰‖² + β/2 ‖w_S̄‖²

| symbol | attribute or variable | shape |
| --- | --- | --- |
| w_S | ``backbone.parameters()`` | as in the backbone |
| w_S⁰ | ``start`` | the same |
| w_S̄ | ``task.parameters()`` | (answers, dim), (answers,) |
| α, β | ``options.alpha``, ``options.beta`` | scalars |

Differences from the paper: the penalty is a term of the loss, whose gradient Adam rescales together with the task's;
there it is stochastic gradient descent with momentum. All parameters are counted, biases and scales of normalisations
too. α is to be chosen on validation; both defaults are ours. The paper's variants, which weigh parameters by Fisher
information or pull with another norm, are not here.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.options import Options
from finetune_kit.strategy import Encoded, Strategy
from ftkit_schedules.snapshot import Snapshot


class L2SPOptions(Options):
    """Options of L2-SP."""

    alpha: float = Field(0.01, ge=0)
    """α: pull of the backbone towards its pre-trained weights; 0 is finetune-all with a decaying head."""
    beta: float = Field(0.01, ge=0)
    """β: pull of the head towards zero."""


class L2SP(Strategy):
    """Train everything; distance from the pre-trained weights costs."""

    Options = L2SPOptions
    keeps_copies = True
    options: L2SPOptions

    def build(self) -> None:
        """Remember the pre-trained weights; everything trains."""
        self.start = Snapshot(self.backbone)

    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Return the task's loss plus Ω(w)."""
        return super().loss(batch, encoded) + self.penalty()

    def penalty(self) -> Tensor:
        """Return Ω(w), a scalar."""
        moved = _squared_norm([w - self.start[name] for name, w in self.backbone.named_parameters()])
        new = _squared_norm(list(self.task.parameters()))
        return self.options.alpha / 2 * moved + self.options.beta / 2 * new


def _squared_norm(tensors: list[Tensor]) -> Tensor:
    """Return the squared Euclidean norm of all tensors together, a scalar."""
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()
