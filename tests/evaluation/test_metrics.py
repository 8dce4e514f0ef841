import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, Success, nDCG

from finetune_kit.evaluation.metrics import rank_metrics


@settings(max_examples=25, deadline=None)
@given(ranks=st.lists(st.integers(1, 25), min_size=1, max_size=12), cutoff=st.integers(1, 20))
def test_metrics_equal_those_of_ir_measures(ranks: list[int], cutoff: int) -> None:
    qrels = [ir_measures.Qrel(f"q{q}", "positive", 1) for q in range(len(ranks))]
    run = [
        ir_measures.ScoredDoc(f"q{q}", "positive" if place == rank else f"other{place}", 100.0 - place)
        for q, rank in enumerate(ranks)
        for place in range(1, 26)
    ]
    oracle = ir_measures.calc_aggregate([Success @ cutoff, RR @ cutoff, nDCG @ cutoff], qrels, run)
    assert rank_metrics(np.array(ranks, dtype=float), [cutoff]) == pytest.approx(
        {
            f"hr@{cutoff}": oracle[Success @ cutoff],
            f"mrr@{cutoff}": oracle[RR @ cutoff],
            f"ndcg@{cutoff}": oracle[nDCG @ cutoff],
        }
    )


def test_metrics_by_hand() -> None:
    metrics = rank_metrics(np.array([1.0, 2.5, 5.0, 5.5]), (1, 5))
    assert metrics == pytest.approx(
        {
            "hr@1": 1 / 4,
            "mrr@1": 1 / 4,
            "ndcg@1": 1 / 4,
            "hr@5": 3 / 4,
            "mrr@5": (1 + 1 / 2.5 + 1 / 5) / 4,
            "ndcg@5": (1 + 1 / math.log2(3.5) + 1 / math.log2(6)) / 4,
        }
    )
    assert all(type(value) is float for value in metrics.values())
