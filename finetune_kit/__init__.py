"""Fine-tune sequential recommenders for cold users, with strategies that decide per user what is re-learned.

Names are imported when they are first used, so that ``import finetune_kit`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from finetune_kit.backbone import Backbone, Context
    from finetune_kit.component import Component
    from finetune_kit.data.batch import Batch
    from finetune_kit.data.dataset import Dataset
    from finetune_kit.data.reader import DatasetReader
    from finetune_kit.errors import FinetuneKitError
    from finetune_kit.hookspecs import hookimpl
    from finetune_kit.options import Options
    from finetune_kit.policy import Policy
    from finetune_kit.strategy import Encoded, Strategy
    from finetune_kit.task import ItemTask, LabelTask, Task
    from finetune_kit.tracker import Tracker
    from finetune_kit.wrapping.backbone import WrappedBackbone, wrap

_HOME = {
    "Backbone": "finetune_kit.backbone",
    "Batch": "finetune_kit.data.batch",
    "Component": "finetune_kit.component",
    "Context": "finetune_kit.backbone",
    "Dataset": "finetune_kit.data.dataset",
    "DatasetReader": "finetune_kit.data.reader",
    "Encoded": "finetune_kit.strategy",
    "FinetuneKitError": "finetune_kit.errors",
    "ItemTask": "finetune_kit.task",
    "LabelTask": "finetune_kit.task",
    "Options": "finetune_kit.options",
    "Policy": "finetune_kit.policy",
    "Strategy": "finetune_kit.strategy",
    "Task": "finetune_kit.task",
    "Tracker": "finetune_kit.tracker",
    "WrappedBackbone": "finetune_kit.wrapping.backbone",
    "hookimpl": "finetune_kit.hookspecs",
    "wrap": "finetune_kit.wrapping.backbone",
}

__all__ = [
    "Backbone",
    "Batch",
    "Component",
    "Context",
    "Dataset",
    "DatasetReader",
    "Encoded",
    "FinetuneKitError",
    "ItemTask",
    "LabelTask",
    "Options",
    "Policy",
    "Strategy",
    "Task",
    "Tracker",
    "WrappedBackbone",
    "hookimpl",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
