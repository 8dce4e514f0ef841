"""What finetune-kit loads to list this plugin; it imports no torch, so that listings stay fast."""

from __future__ import annotations

from finetune_kit import Component, hookimpl


@hookimpl
def ftkit_backbones() -> list[Component]:
    """Offer the backbone."""
    return [
        Component(
            "my-backbone",
            "Each position sees the mean of those up to it",
            "ftkit_my_backbone.backbone:MyBackbone",
            contract={"options": {"dim": 8, "num_blocks": 2}},
        ),
    ]
