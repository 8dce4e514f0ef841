"""What a person wants to know of a dataset before training on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune_kit.data.dataset import UNKNOWN, Dataset, Labels

MOST = 10
"""Users with more target events than this are counted together."""


def inspect(dataset: Dataset) -> dict[str, Any]:
    """Return what is in a dataset and what was left out when it was prepared, fit to be written as JSON.

    Returns:
        ``users``; ``source`` and ``target`` with ``items``, ``events`` and their spread over users;
        ``labels`` with users per class; ``times`` (None without times): the share of source events with the
        time of the same user's event before (``equal``: their order is the file's, or drawn) and later than
        the user's first target event (``after_target``: a model that sees them looks into the future);
        ``raw``, the counts before anyone was left out; ``left_out``, users and their events by reason;
        ``beyond_max_target``, target events of kept users that were too many; ``warnings``.
    """
    counts, raw = dataset.manifest["counts"], dict(dataset.manifest["raw"])
    left_out, beyond, times = (raw.pop(key) for key in ("left_out", "beyond_max_target", "times"))
    return {
        "name": dataset.name,
        "path": str(dataset.path),
        "fingerprint": dataset.fingerprint,
        "users": dataset.num_users,
        "source": {
            "items": counts["source_items"],
            "events": counts["source_events"],
            "per_user": _spread(dataset.source_lengths),
        },
        "target": {
            "items": counts["target_items"],
            "events": counts["target_events"],
            "users_by_events": _users_by_events(dataset),
        },
        "labels": {name: _balance(labels) for name, labels in dataset.labels.items()},
        "times": times,
        "raw": raw,
        "left_out": left_out,
        "beyond_max_target": beyond,
        "warnings": dataset.manifest["warnings"],
    }


def _spread(lengths: np.ndarray) -> dict[str, float]:
    return {
        "min": int(lengths.min()),
        "median": float(np.median(lengths)),
        "mean": round(float(lengths.mean()), 2),
        "p90": round(float(np.quantile(lengths, 0.9)), 2),
        "max": int(lengths.max()),
    }


def _users_by_events(dataset: Dataset) -> dict[str, int]:
    """Return how many users have 0, 1, 2, … target events, without empty counts."""
    per_user = np.bincount(dataset.target.user, minlength=dataset.num_users + 1)[1:]
    users = np.bincount(np.minimum(per_user, MOST + 1))
    return {str(k) if k <= MOST else f"{MOST + 1}+": int(number) for k, number in enumerate(users) if number}


def _balance(labels: Labels) -> dict[str, int]:
    """Return users per class, and under ``"(unknown)"`` those without one."""
    counts = {name: int((labels.value == k).sum()) for k, name in enumerate(labels.classes)}
    unknown = int((labels.value == UNKNOWN).sum())
    return counts | ({"(unknown)": unknown} if unknown else {})
