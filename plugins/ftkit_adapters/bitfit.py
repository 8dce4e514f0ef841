"""BitFit: of the pre-trained backbone, only the biases are trained.

Ben Zaken, Ravfogel, Goldberg: *BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models*, ACL 2022, https://arxiv.org/abs/2106.10199. In every layer, the bias b trains and all else is frozen:

    y = W x + b                                  (linear maps, convolutions, gates)
    y = g ⊙ (x − μ)/σ + b                          (LayerNorms)

| symbol | attribute | shape |
| --- | --- | --- |
| b | every parameter of the backbone with *bias* in its own name | (outputs,) |
| W, g | the others, frozen | (outputs, …), (dim,) |

Differences from the paper: dropout inside of the backbone is off in training, and running statistics stay, as in all
that is frozen here (`Trainable.freeze`): so what trains is what is evaluated. The paper's second variant, which trains
the biases of the queries and of the feed-forward layer's first map alone, needs names that backbones don't share.
"""

from __future__ import annotations

from finetune_kit.errors import PluginError
from finetune_kit.strategy import Strategy


class BitFit(Strategy):
    """Train the biases and the head."""

    def build(self) -> None:
        """Freeze the backbone but for its biases.

        Raises:
            PluginError: When its blocks have none.
        """
        biases = {
            name: parameter for name, parameter in self.backbone.named_parameters() if "bias" in name.rpartition(".")[2]
        }
        if not any(name.startswith("blocks.") for name in biases):
            raise PluginError(
                f"BitFit trains biases, and the blocks of {type(self.backbone).__name__} have none; "
                "use a strategy that trains other parts, e.g. lora"
            )
        self.freeze(self.backbone, but=biases.values())
