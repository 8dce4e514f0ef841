"""Parameter-efficient strategies: small trainable parts inside a pre-trained backbone that rests."""

from __future__ import annotations

from finetune_kit.component import Component
from finetune_kit.hookspecs import hookimpl


@hookimpl
def ftkit_strategies() -> list[Component]:
    """Offer the strategies."""
    return []
