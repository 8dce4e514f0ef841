"""The built-in dataset readers: your own events, the authors' text format, MovieLens, and made-up data."""

from finetune_kit.component import Component
from finetune_kit.hookspecs import hookimpl


@hookimpl
def ftkit_datasets() -> list[Component]:
    """Return the readers; none is imported before it is used."""
    return [
        Component("events", "Your own event logs: one source and one target table.", "ftkit_datasets.events:Events"),
        Component("coldrec", "The UAF authors' text format: one user per line.", "ftkit_datasets.coldrec:ColdRec"),
        Component("movielens", "MovieLens, one genre's films as the target.", "ftkit_datasets.movielens:MovieLens"),
        Component("synthetic", "Made-up users of known taste, of any size.", "ftkit_datasets.synthetic:Synthetic"),
    ]
