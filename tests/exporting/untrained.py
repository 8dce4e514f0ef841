"""What the tests of exporting share: runs of models that were never trained, and what they say of users."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_kit.data.dataset import Dataset
from finetune_kit.data.labelled import for_task
from finetune_kit.strategy import Strategy
from finetune_kit.testing import randomise
from finetune_kit.training.assemble import Run, build_strategy
from growing import configured
from matrix import usual_backbone

FACTS: dict[str, Any] = {"kind": "fine-tuned run", "hash": "a run's hash", "base": {"hash": "a base's hash"}}
LENGTH = 5


def untrained_run(
    dataset: Dataset,
    strategy: str,
    backbone: str | None = None,
    task: str = "items",
    kind: type[Strategy] | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Return a run as `load_run` would, with random weights: what it says differs from user to user."""
    config = configured(
        strategy,
        run={"backbone": backbone or usual_backbone(strategy), "task": task},
        data={"max_length": LENGTH},
        backbone={"num_blocks": 1, **(backbone_options or {})},
        strategy=options,
    )
    seen = for_task(dataset, task)
    sizes = seen.num_source_items, seen.num_target_items
    built = build_strategy(config, *sizes, None) if kind is None else build_strategy(config, *sizes, None, kind)
    return Run(Path("somewhere"), config, FACTS, seen, randomise(built).eval())
