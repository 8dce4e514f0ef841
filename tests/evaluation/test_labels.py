import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_kit.evaluation.labels import label_metrics


def slow_f1(actual: list[int], predicted: list[int]) -> float:
    values = []
    for label in sorted({*actual, *predicted}):
        pairs = list(zip(actual, predicted, strict=True))
        true = sum(a == label and p == label for a, p in pairs)
        precision = true / predicted.count(label) if label in predicted else 0.0
        recall = true / actual.count(label) if label in actual else 0.0
        values.append(2 * precision * recall / (precision + recall) if true else 0.0)
    return sum(values) / len(values)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_metrics_of_labels_equal_slow_loops_over_precision_and_recall(pairs: list[tuple[int, int]]) -> None:
    actual, predicted = [a for a, _ in pairs], [p for _, p in pairs]
    metrics = label_metrics(np.array(actual), np.array(predicted))
    assert metrics["accuracy"] == pytest.approx(sum(a == p for a, p in pairs) / len(pairs))
    assert metrics["f1_macro"] == pytest.approx(slow_f1(actual, predicted))


def test_guessing_the_commonest_class_has_its_share_as_accuracy_and_a_low_f1() -> None:
    metrics = label_metrics(np.array([1, 1, 1, 0]), np.array([1, 1, 1, 1]))
    # F1 of class 1 is 2·3/(4 + 3), of class 0 it is 0
    assert metrics == {"accuracy": 0.75, "f1_macro": pytest.approx(3 / 7)}
