"""Strategies that fine-tune everything, but by a schedule, a pull towards the start, or an interpolation."""

from __future__ import annotations

from finetune_kit.component import Component
from finetune_kit.hookspecs import hookimpl


@hookimpl
def ftkit_strategies() -> list[Component]:
    """Offer the strategies."""
    return []
