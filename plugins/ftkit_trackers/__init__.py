"""Trackers that come with finetune-kit."""

from __future__ import annotations

from finetune_kit.component import Component
from finetune_kit.hookspecs import hookimpl


@hookimpl
def ftkit_trackers() -> list[Component]:
    """Offer the built-in trackers."""
    return [
        Component("jsonl", "One JSON line per epoch in log.jsonl of the run folder", "ftkit_trackers.jsonl:JsonLines")
    ]
