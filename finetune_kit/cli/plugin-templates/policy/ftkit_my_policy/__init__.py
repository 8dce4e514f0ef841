"""What finetune-kit loads to list this plugin; it imports no torch, so that listings stay fast."""

from __future__ import annotations

from finetune_kit import Component, hookimpl


@hookimpl
def ftkit_policies() -> list[Component]:
    """Offer the policy."""
    return [
        Component(
            "my-policy",
            "Decides by the mean of a user's latest items",
            "ftkit_my_policy.policy:MyPolicy",
        ),
    ]
