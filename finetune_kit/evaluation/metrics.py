"""Metrics of a single positive's rank: hit ratio, reciprocal rank, discounted gain, each at a cut-off."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def rank_metrics(ranks: np.ndarray, cutoffs: Iterable[int]) -> dict[str, float]:
    """Return ``{"hr@5": …, "mrr@5": …, "ndcg@5": …}`` over instances, each in [0, 1].

    With one relevant item per instance: HR@N = mean[rank ≤ N], MRR@N = mean[rank ≤ N] / rank, NDCG@N =
    mean[rank ≤ N] / log₂(1 + rank).

    Args:
        ranks: ``(instances,)``, ranks from 1; may end in ½ where scores were level.
        cutoffs: The Ns.
    """
    metrics = {}
    for cutoff in cutoffs:
        hit = ranks <= cutoff
        metrics[f"hr@{cutoff}"] = float(hit.mean())
        metrics[f"mrr@{cutoff}"] = float((hit / ranks).mean())
        metrics[f"ndcg@{cutoff}"] = float((hit / np.log2(1 + ranks)).mean())
    return metrics
