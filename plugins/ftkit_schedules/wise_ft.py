"""WiSE-FT: fine-tune everything, and use weights between the pre-trained and the fine-tuned ones.

Wortsman, Ilharco, Kim, Li, Kornblith, Roelofs, Gontijo-Lopes, Hajishirzi, Farhadi, Namkoong, Schmidt: *Robust
Fine-Tuning of Zero-Shot Models*, CVPR 2022, https://arxiv.org/abs/2109.01903. With θ⁰ the pre-trained and θ¹ the
fine-tuned weights:

    θ = (1 − α) θ⁰ + α θ¹

| symbol | attribute or variable | shape |
| --- | --- | --- |
| θ⁰ | ``pretrained`` | as in the backbone |
| θ¹ | ``backbone`` | the same |
| θ | ``merged_backbone()`` | the same |
| α | ``options.alpha`` | scalar |

Training moves θ¹ exactly as finetune-all does; evaluation uses θ. θ¹ is what a run saves, and θ⁰ is its base, so both
ends are at hand and ``ftkit evaluate RUN --set strategy.alpha=0.3`` tries another α without training: 0 is the
pre-trained backbone, 1 is finetune-all.

Differences from the paper: there θ⁰ has a head made from text, and heads are interpolated as well. New target items
have no head before fine-tuning, so the trained head serves every α, though it was fitted to the features of α = 1.
There the weights are interpolated after training; here early stopping already sees θ, since it is θ that will be used,
so the best epoch belongs to the α of the training. Running statistics of normalisations are interpolated like weights;
buffers that are no floating-point numbers are those of θ¹.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from finetune_kit.backbone import Backbone
from finetune_kit.data.batch import Batch
from finetune_kit.options import Options
from finetune_kit.strategy import Encoded, Strategy
from ftkit_schedules.snapshot import Snapshot

if TYPE_CHECKING:
    from typing_extensions import Self


class WiseFtOptions(Options):
    """Options of WiSE-FT."""

    alpha: float = Field(0.5, ge=0, le=1)
    """α: share of the fine-tuned weights; 0 is the pre-trained backbone, 1 is finetune-all, the paper advises 0.5."""


class WiseFt(Strategy):
    """Train everything; evaluate between where it started and where it ended."""

    Options = WiseFtOptions
    evaluation_options = frozenset({"alpha"})
    options: WiseFtOptions

    def build(self) -> None:
        """Remember the pre-trained weights; everything trains."""
        self.pretrained = Snapshot(self.backbone)
        self._merged: list[Backbone] = []  # what evaluation uses, if it was needed yet; in a list, so not a submodule

    def encode(self, batch: Batch) -> Encoded:
        """Return the user vectors ``(users, dim)`` of θ¹ in training and of θ in evaluation."""
        if self.training:
            return super().encode(batch)
        if not self._merged:
            self._merged.append(self.merged_backbone())
        return Encoded(self._merged[0].user_vectors(batch.sequence, pooling=self.pooling))

    @torch.no_grad()
    def merged_backbone(self) -> Backbone:
        """Return a backbone with the weights θ, a copy of its own."""
        merged = copy.deepcopy(self.backbone)
        tuned = self.backbone.state_dict()
        for name, tensor in merged.state_dict().items():
            if tensor.is_floating_point():
                torch.lerp(self.pretrained[name], tuned[name], self.options.alpha, out=tensor)  # exact at α = 0 and 1
        return merged

    # θ is computed once per evaluation, and again after whatever may have changed θ¹

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation."""
        self._merged.clear()
        return super().train(mode)

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Load θ¹ and the head."""
        self._merged.clear()
        super().load_trained_state(state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to a device or a type; torch calls it for all of `to`, `cuda`, `double` and the like."""
        self._merged.clear()
        return super()._apply(fn, recurse)
