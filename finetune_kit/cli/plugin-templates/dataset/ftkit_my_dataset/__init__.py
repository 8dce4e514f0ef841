"""What finetune-kit loads to list this plugin; it imports no torch, so that listings stay fast."""

from __future__ import annotations

from finetune_kit import Component, hookimpl


@hookimpl
def ftkit_datasets() -> list[Component]:
    """Offer the dataset reader."""
    return [
        Component(
            "my-dataset",
            "One user a line, as JSON: user, source items, target items.",
            "ftkit_my_dataset.dataset:MyDataset",
        ),
    ]
