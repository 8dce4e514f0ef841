"""Parameter-efficient strategies: small trainable parts inside a pre-trained backbone that is frozen."""

from __future__ import annotations

from finetune_kit.component import Component
from finetune_kit.hookspecs import hookimpl

PEFT_METHODS = {
    "hra": "Householder reflections of the weights",
    "ia3": "factors of the layers' outputs",
    "loha": "Hadamard products of low rank",
    "lokr": "Kronecker products of low rank",
    "lora": "changes of low rank",
    "oft": "rotations of the weights",
}
"""Methods of PEFT that were tried, and what they train."""


@hookimpl
def ftkit_strategies() -> list[Component]:
    """Offer the strategies."""
    return [
        Component("bitfit", "The biases of the backbone are trained (ACL 2022)", "ftkit_adapters.bitfit:BitFit"),
        Component(
            "houlsby",
            "Adapters behind the sublayers, and the blocks' LayerNorms, are trained (ICML 2019)",
            "ftkit_adapters.houlsby:Houlsby",
        ),
        Component(
            "lora",
            "A change of low rank is trained for every weight of the blocks (ICLR 2022)",
            "ftkit_adapters.lora:Lora",
        ),
        *(
            Component(
                f"peft:{method}",
                f"{method} of Hugging Face PEFT: {what}",
                "ftkit_adapters.peft:Peft",
                {"method": method},
            )
            for method, what in PEFT_METHODS.items()
        ),
    ]
