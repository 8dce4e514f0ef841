"""MTL: one backbone learns the source and the target domain at once.

The baseline of Chen et al., *User-specific Adaptive Fine-tuning for Cross-domain Recommendations*, TKDE 2021,
section 4.2: multi-task learning by hard parameter sharing (Caruana, *Multitask Learning*, 1997), without pre-training:

    L = L_target + λ L_source
    L_source = mean of −log softmax(W E_L + b)[x_{t+1}] over the positions t of the source windows      (Eq. 3-5)

| symbol | attribute | shape |
| --- | --- | --- |
| E_L | ``backbone(batch.source.inputs)`` | (windows, length, dim) |
| W, b | ``source_output`` | (num_items, dim), (num_items,) |
| L_target | ``task.loss`` | scalar |
| λ | ``options.source_weight`` | |

Differences from the paper: it names neither λ nor how the two domains share a step; here λ = 1, and every step has
windows of the source domain beside its target instances. Windows may be of any users, not only of the batch's.
Backbones that see later items guess hidden ones instead of the next (`Backbone.source_task`).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from finetune_kit.data.batch import Batch
from finetune_kit.losses import next_item
from finetune_kit.options import Options
from finetune_kit.strategy import Encoded, Strategy


class MtlOptions(Options):
    """Options of MTL."""

    source_weight: float = Field(1.0, ge=0)
    """λ: weight of the source domain's next-item loss beside the target's."""


class Mtl(Strategy):
    """Train everything from random weights, on both domains at once."""

    needs_pretrained = False
    needs_source_batches = True
    Options = MtlOptions
    options: MtlOptions

    def build(self) -> None:
        """Leave everything trainable and add the source domain's output layer."""
        self.source_output = nn.Linear(self.backbone.dim, self.backbone.num_items)

    def loss(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Return L in training; in evaluation, where there are no source windows, L_target."""
        target = super().loss(batch, encoded)
        if not self.training:
            return target
        assert batch.source is not None, "mtl trains on batches with source windows; give Batch(…, source=Windows(…))"
        source = self.backbone.source_task(batch.source, self.noise)
        hidden = self.backbone(source.inputs)  # (windows, length, dim)
        return target + self.options.source_weight * next_item(hidden, source.labels, self.source_output)
