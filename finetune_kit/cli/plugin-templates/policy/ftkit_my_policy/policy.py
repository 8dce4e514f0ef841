"""MyPolicy: say here, in one sentence, by what of a user's history it decides.

Name the paper: authors, *title*, venue and year, link. Or say that the idea is yours. Then its equations, numbered as
there, and how they read off this file:

    v = W · (mean of the embeddings of the latest n items) + b             (1)

| symbol | attribute | shape |
| --- | --- | --- |
| v | the output | (users, blocks, outputs) |
| W, b | ``output`` | (blocks · outputs, dim), (blocks · outputs,) |

Differences from the paper: each point at which this file does something else than the paper, or than the authors' code,
and why; "none" if there are none.
"""

from __future__ import annotations

import copy

from finetune_kit import Backbone, Options, Policy
from pydantic import Field
from torch import Tensor, nn


class MyPolicyOptions(Options):
    """Options of MyPolicy."""

    latest: int = Field(10, ge=1)
    """How many of the latest items it looks at."""


class MyPolicy(Policy):
    """A copy of the pre-trained item embedding, the mean over a user's latest items, a linear layer."""

    Options = MyPolicyOptions
    options: MyPolicyOptions

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int,
        options: MyPolicyOptions | None = None,
    ) -> None:
        super().__init__(backbone, num_outputs, options)
        self.item_embedding = copy.deepcopy(backbone.item_embedding)
        self.output = nn.Linear(backbone.dim, self.num_blocks * num_outputs)

    def forward(self, sequence: Tensor) -> Tensor:
        """Return decisions ``(users, blocks, outputs)`` of item ids ``(users, length)`` (Eq. 1)."""
        latest = sequence[:, -self.options.latest :]  # (users, n)
        is_item = (latest != 0).unsqueeze(-1)  # (users, n, 1)
        total = (self.item_embedding(latest) * is_item).sum(dim=1)  # (users, dim)
        mean = total / is_item.sum(dim=1).clamp(min=1)
        return self.output(mean).unflatten(-1, (self.num_blocks, self.num_outputs))
