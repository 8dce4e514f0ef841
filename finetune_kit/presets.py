"""What ``--preset`` sets in the sections that belong to no plugin; components name their own part (``variants``).

``paper`` has the sizes of the UAF paper, section 4.3. ``authors`` has also what the authors' code does where it differs
(docs/method.md has the table), as far as their scripts run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PAPER: dict[str, dict[str, Any]] = {
    "pretrain": {"learning_rate": 1e-4, "batch_size": 256, "windows": "latest"},
    "finetune": {"learning_rate": 1e-4, "batch_size": 256, "batching": "instances", "loss": "bpr", "pooling": "last"},
}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "none": {},
    "paper": _PAPER,
    "authors": {
        "pretrain": _PAPER["pretrain"],
        "finetune": {**_PAPER["finetune"], "loss": "bce", "pooling": "mean"},
        "data": {"split": "authors"},
        "evaluation": {"protocols": ("sampled", "full")},  # the first chooses the best epoch, as theirs does
    },
}
"""Preset to section to options; what a user gives comes first."""
