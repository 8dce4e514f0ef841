"""BitFitNorms: of the pre-trained backbone, the biases of the LayerNorms are trained and nothing else.

Ben Zaken, Goldberg, Ravfogel: *BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models*, ACL 2022, https://arxiv.org/abs/2106.10199. It trains the bias terms of a model and leaves its
weights as they are. In a LayerNorm, the bias is b:

    LN(z) = g ⊙ (z - mean(z)) / std(z) + b                                 (1)

| symbol | attribute | shape |
| --- | --- | --- |
| z | input of each ``nn.LayerNorm`` of the backbone | (users, length, dim) |
| g | its ``weight`` | (dim,) |
| b | its ``bias`` | (dim,) |

Differences from the paper: it trains all biases, those of linear maps and of attention too; here LayerNorms alone are
looked at, which leaves this example something to say that the built-in ``bitfit`` does not. ``scales=true`` trains g
beside b.
"""

from __future__ import annotations

from finetune_kit import Options, Strategy
from finetune_kit.errors import PluginError
from torch import nn


class BitFitNormsOptions(Options):
    """Options of BitFitNorms."""

    scales: bool = False
    """Train the scales of the LayerNorms beside their biases."""


class BitFitNorms(Strategy):
    """Train the head, and of the backbone the biases of its LayerNorms."""

    Options = BitFitNormsOptions
    options: BitFitNormsOptions

    def build(self) -> None:
        """Freeze the backbone but for its LayerNorms, and of those the scales, unless they are wanted.

        Raises:
            PluginError: When the backbone has no LayerNorm with a bias.
        """
        norms = [part for part in self.backbone.modules() if isinstance(part, nn.LayerNorm) and part.bias is not None]
        if not norms:
            raise PluginError(
                f"BitFitNorms trains the biases of LayerNorms, and {type(self.backbone).__name__} has none; "
                "use a backbone that has, e.g. nextitnet"
            )
        self.freeze(self.backbone, but=norms)
        for norm in norms:
            norm.weight.requires_grad_(self.options.scales)
