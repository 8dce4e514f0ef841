"""BitFit: of the pre-trained backbone, only the biases and the LayerNorms are trained.

Ben Zaken, Ravfogel, Goldberg: *BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models*, ACL 2022, https://arxiv.org/abs/2106.10199.

Differences from the paper: it trains biases alone; here the LayerNorms' scales are trained too
(``scales=false`` leaves them), as a sequential backbone has few parameters of either kind.
"""

from __future__ import annotations

from torch import nn

from finetune_kit import Options, Strategy


class BitFitOptions(Options):
    """Options of BitFit."""

    scales: bool = True
    """Train the scales of the LayerNorms beside all biases."""


class BitFit(Strategy):
    """Train the head, and of the backbone the biases and LayerNorms."""

    Options = BitFitOptions
    options: BitFitOptions

    def build(self) -> None:
        """Freeze every weight of the backbone that is no bias and, with ``scales``, no LayerNorm's."""
        for module in self.backbone.modules():
            is_norm = isinstance(module, nn.LayerNorm)
            for name, parameter in module.named_parameters(recurse=False):
                parameter.requires_grad_("bias" in name or (is_norm and self.options.scales))
