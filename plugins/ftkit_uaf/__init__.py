"""User-specific adaptive fine-tuning (UAF): strategies that decide per user, and the policies that decide."""

from __future__ import annotations

from finetune_kit.component import Component
from finetune_kit.hookspecs import hookimpl


@hookimpl
def ftkit_strategies() -> list[Component]:
    """Offer the UAF strategies."""
    return [
        Component(
            "uaf-hard",
            "Per user and block, frozen or fine-tuned, learned by Gumbel-softmax (TKDE 2021)",
            "ftkit_uaf.hard:UafHard",
        ),
    ]


@hookimpl
def ftkit_policies() -> list[Component]:
    """Offer the policies of the UAF paper."""
    return [
        Component(
            "conv",
            "Own item embedding, two NextItNet blocks, mean over positions, linear",
            "ftkit_uaf.policies:ConvPolicy",
        ),
    ]
