"""Sequential backbones that come with finetune-kit."""

from __future__ import annotations

from finetune_kit.component import Component
from finetune_kit.hookspecs import hookimpl


@hookimpl
def ftkit_backbones() -> list[Component]:
    """Offer the built-in backbones."""
    return [
        Component(
            "nextitnet",
            "Dilated causal convolutions in residual blocks (Yuan et al., WSDM 2019)",
            "ftkit_backbones.nextitnet:NextItNet",
            variants={
                "paper": {"dim": 128, "num_blocks": 8},
                "authors": {"dim": 128, "num_blocks": 8, "mask_padding": False},
            },
        ),
    ]
