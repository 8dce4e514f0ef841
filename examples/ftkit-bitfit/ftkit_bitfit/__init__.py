"""What finetune-kit loads to list this plugin; it imports no torch, so that listings stay fast."""

from __future__ import annotations

from finetune_kit import Component, hookimpl


@hookimpl
def ftkit_strategies() -> list[Component]:
    """Offer the strategy."""
    return [
        Component(
            "bitfit-norms",
            "The head and the biases of the LayerNorms are trained (after BitFit, ACL 2022)",
            "ftkit_bitfit.norms:BitFitNorms",
        ),
    ]
