"""MyStrategy: say here, in one sentence, what is reused, what is added and what is re-learned.

Name the paper: authors, *title*, venue and year, link. Or say that the idea is yours. Then its equations, numbered as
there, and how they read off this file:

    h' = g ⊙ h                                                             (1)

| symbol | attribute | shape |
| --- | --- | --- |
| h | ``backbone.user_vectors`` | (users, dim) |
| g | ``gain`` | (dim,) |

Differences from the paper: each point at which this file does something else than the paper, or than the authors' code,
and why; "none" if there are none.
"""

from __future__ import annotations

import torch
from finetune_kit import Batch, Encoded, Options, Strategy
from torch import nn


class MyStrategyOptions(Options):
    """Options of MyStrategy."""

    train_backbone: bool = False
    """Train the pre-trained backbone too, instead of leaving it as it is."""


class MyStrategy(Strategy):
    """Train the head and a factor per number of the user vector; before the first update they change nothing."""

    Options = MyStrategyOptions
    options: MyStrategyOptions

    def build(self) -> None:
        """Freeze the backbone and add the gain."""
        if not self.options.train_backbone:
            self.freeze(self.backbone)
        self.gain = nn.Parameter(torch.ones(self.backbone.dim))

    def encode(self, batch: Batch) -> Encoded:
        """Return the user vectors of a batch, ``(users, dim)``, each number times its gain (Eq. 1)."""
        return Encoded(self.gain * super().encode(batch).vectors)
