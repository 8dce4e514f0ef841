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

import torch
from pydantic import Field

from finetune_kit.backbone import Backbone
from finetune_kit.data.batch import Batch
from finetune_kit.options import Options
from finetune_kit.strategy import Encoded, Strategy
from ftkit_schedules.snapshot import Snapshot


class WiseFtOptions(Options):
    """Options of WiSE-FT."""

    alpha: float = Field(0.5, ge=0, le=1)
    """α: share of the fine-tuned weights; 0 is the pre-trained backbone, 1 is finetune-all, the paper advises 0.5."""


class WiseFt(Strategy):
    """Train everything; evaluate between where it started and where it ended."""

    Options = WiseFtOptions
    keeps_copies = True
    evaluation_options = frozenset({"alpha"})
    options: WiseFtOptions

    def build(self) -> None:
        """Remember the pre-trained weights; everything trains."""
        self.pretrained = Snapshot(self.backbone)
        self._merged: tuple[list[object], Backbone] | None = None  # of which θ¹, and θ; in a tuple it is no submodule

    def encode(self, batch: Batch) -> Encoded:
        """Return the user vectors ``(users, dim)`` of θ¹ in training and of θ in evaluation."""
        if self.training:
            self._merged = None  # a step may follow, and the fused optimisers don't count theirs in `_version`
            return super().encode(batch)
        return Encoded(self._interpolated().user_vectors(batch.sequence, pooling=self.pooling))

    def _interpolated(self) -> Backbone:
        """Return θ, computed once and again only when some tensor of θ¹ is another one or was written to."""
        tuned = self.backbone.state_dict().values()
        state: list[object] = [(tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tuned]
        if self._merged is None or self._merged[0] != state:
            self._merged = (state, self.merged_backbone())
        return self._merged[1]

    @torch.no_grad()
    def merged_backbone(self) -> Backbone:
        """Return a backbone with the weights θ, a copy of its own."""
        merged = copy.deepcopy(self.backbone)
        tuned = self.backbone.state_dict()
        for name, tensor in merged.state_dict().items():
            if tensor.is_floating_point():
                torch.lerp(self.pretrained[name], tuned[name], self.options.alpha, out=tensor)  # exact at α = 0 and 1
        return merged
