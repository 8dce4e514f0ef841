"""What finetune-kit loads to list this plugin; it imports no torch, so that listings stay fast."""

from __future__ import annotations

from finetune_kit import Component, hookimpl


@hookimpl
def ftkit_strategies() -> list[Component]:
    """Offer the strategy."""
    return [
        Component(
            "my-strategy",
            "The head and one factor per number of the user vector are trained",
            "ftkit_my_strategy.strategy:MyStrategy",
        ),
    ]
