"""What finetune-kit loads to list this plugin: it imports no torch; ``ftkit_bitfit`` has the strategy."""

from __future__ import annotations

from finetune_kit import Component, hookimpl


@hookimpl
def ftkit_strategies() -> list[Component]:
    """Offer the strategy."""
    return [
        Component("bitfit", "The head, biases and LayerNorms are trained (BitFit, ACL 2022)", "ftkit_bitfit:BitFit")
    ]
