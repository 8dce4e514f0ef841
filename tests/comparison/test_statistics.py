import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import made_up_label_run, made_up_results, made_up_run
from scipy import stats
from statsmodels.stats.multitest import multipletests

from finetune_kit.comparison.results import Results, Setting
from finetune_kit.comparison.statistics import holm, paired_t_test, test_pairs


def oracle(p) -> np.ndarray:
    """Return Holm's correction by statsmodels, without the garbage collection that it does at each call."""
    with patch("gc.collect"):
        return multipletests(p, method="holm")[1]


P = st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.05, 1.0])


@given(st.lists(P, min_size=1, max_size=30))
def test_holm_s_correction_is_that_of_statsmodels(p):
    np.testing.assert_allclose(holm(p), oracle(p), rtol=1e-12, atol=0)


def test_holm_of_nothing_is_nothing():
    assert holm([]) == []


@given(
    st.lists(st.tuples(st.sampled_from([0, 0.2, 0.25, 1 / 3, 0.5, 1]), st.sampled_from([0, 0.2, 0.5, 1])), min_size=2)
)
def test_the_paired_t_test_is_scipy_s_and_never_warns(values):
    one, other = np.array(values).T
    test = paired_t_test(one - other)
    differences = one - other
    if len(set(differences.tolist())) == 1:
        assert test is None if differences[0] else (test.difference, test.p) == (0, 1)
        return
    expected = stats.ttest_rel(one, other)
    assert test.p == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-300)
    assert test.low <= test.difference <= test.high
    assert test.effect == pytest.approx(expected.statistic / math.sqrt(len(one)), rel=1e-9)


def test_a_test_can_be_worked_by_hand():
    test = paired_t_test(np.array([1.0, 2.0, 3.0]))
    assert test.difference == 2
    assert test.effect == 2  # mean 2, deviation 1
    assert test.p == pytest.approx(2 * stats.t.sf(2 * math.sqrt(3), 2))
    assert (test.low + test.high) / 2 == pytest.approx(2)
    assert test.count == 3


def test_the_test_over_overlapping_splits_is_the_corrected_resampled_one(tmp_path):
    ranks = {"a": [[1, 2, 9, 4], [3, 9, 1, 1], [1, 1, 1, 2]], "b": [[2, 1, 9, 9], [9, 9, 2, 1], [1, 9, 9, 9]]}
    instances = {"train": 16, "valid": 1, "test": 4}
    test = test_pairs(made_up_results(tmp_path, ranks, instances=instances))[0].tests["seeds"]

    def mean(row):  # slowly
        return sum(1 / rank for rank in row if rank <= 5) / len(row)

    differences = [mean(one) - mean(other) for one, other in zip(ranks["a"], ranks["b"], strict=True)]
    centre = sum(differences) / 3
    variance = sum((value - centre) ** 2 for value in differences) / 2
    error = math.sqrt((1 / 3 + 4 / 16) * variance)
    assert test.difference == pytest.approx(centre)
    assert test.p == pytest.approx(2 * stats.t.sf(centre / error, 2))
    assert (test.low, test.high) == pytest.approx((centre - 4.302653 * error, centre + 4.302653 * error))
    assert test.p > stats.ttest_1samp(differences, 0).pvalue


def test_less_than_two_differences_have_no_test():
    assert paired_t_test(np.array([1.0])) is None


def test_equal_differences_have_no_test_but_are_known(tmp_path):
    assert paired_t_test(np.array([0.1 + 0.2, 0.3])) is None
    pair = test_pairs(made_up_results(tmp_path, {"a": [[1, 1], [1, 1]], "b": [[9, 9], [9, 9]]}))[0]
    assert (pair.tests, pair.difference, pair.flipped().difference) == ({}, 1, -1)


def test_equal_rows_have_p_1_and_no_effect():
    test = paired_t_test(np.zeros(5))
    assert (test.difference, test.effect, test.p) == (0, 0, 1)


def test_instances_of_all_seeds_and_means_of_seeds_are_tested(tmp_path):
    ranks = {"a": [[1, 2, 9, 4], [3, 9, 1, 1]], "b": [[2, 1, 9, 9], [9, 9, 2, 1]]}
    pairs = test_pairs(made_up_results(tmp_path, ranks))
    assert [(pair.one.strategy, pair.other.strategy, pair.metric) for pair in pairs] == [
        ("a", "b", "mrr@5"),
        ("a", "b", "hr@5"),
    ]

    def gains(name, seed):  # slowly
        return [1 / rank if rank <= 5 else 0 for rank in ranks[name][seed]]

    one, other = ([value for seed in (0, 1) for value in gains(name, seed)] for name in "ab")
    assert pairs[0].tests["instances"].p == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert pairs[0].tests["instances"].count == 8
    means = [[np.mean(gains(name, seed)) for seed in (0, 1)] for name in "ab"]
    assert pairs[0].tests["seeds"].p == pytest.approx(stats.ttest_rel(*means).pvalue)
    assert pairs[0].tests["seeds"].count == 2


def test_the_order_of_instances_does_not_matter(tmp_path):
    results = made_up_results(tmp_path, {"a": [[1, 2, 9, 4]], "b": [[2, 9, 1, 3]]})
    expected = test_pairs(results)
    columns = results.runs[1].instances
    for name, column in columns.items():
        columns[name] = column[::-1]
    assert test_pairs(results) == expected


def test_holm_corrects_over_the_pairs_of_a_metric_share_and_kind(tmp_path):
    rng = np.random.default_rng(0)
    runs = [
        made_up_run(tmp_path, Setting(name, fraction=fraction), seed, rng.integers(1, 9, 40))
        for fraction in (1.0, 0.1)
        for name in "abc"
        for seed in (0, 1)
    ]
    pairs = test_pairs(Results("made-up", "items", tuple(runs)))
    assert len(pairs) == 2 * 2 * 3
    for kind in ("instances", "seeds"):
        for metric in ("mrr@5", "hr@5"):
            for fraction in (1.0, 0.1):
                those = [pair.tests for pair in pairs if (pair.metric, pair.one.fraction) == (metric, fraction)]
                family = [tests[kind] for tests in those if kind in tests]
                expected = oracle([test.p for test in family])
                np.testing.assert_allclose([test.p_holm for test in family], expected)


def test_one_seed_has_no_test_over_seeds_and_one_row_no_pair(tmp_path):
    pairs = test_pairs(made_up_results(tmp_path, {"a": [[1, 2]], "b": [[2, 3]]}))
    assert list(pairs[0].tests) == ["instances"]
    assert test_pairs(made_up_results(tmp_path, {"a": [[1, 2], [2, 3]]})) == []


def test_rows_are_paired_over_the_seeds_that_both_have(tmp_path):
    pairs = test_pairs(made_up_results(tmp_path, {"a": [[1, 2], [3, 4]], "b": [[2, 4]]}))
    assert list(pairs[0].tests) == ["instances"]
    assert pairs[0].tests["instances"].difference == pytest.approx((1 - 1 / 2 + 1 / 2 - 1 / 4) / 2)


def test_other_test_instances_are_our_fault(tmp_path):
    results = made_up_results(tmp_path, {"a": [[1, 2]], "b": [[2, 3, 4]]})
    with pytest.raises(AssertionError, match="seed 0 have other test instances"):
        test_pairs(results)


def test_of_labels_accuracy_is_tested_over_users_and_macro_f1_over_seeds(tmp_path):
    runs = [
        made_up_label_run(tmp_path, Setting(name), seed, [0, 1, 1, 0], predicted, f1)
        for name, seed, predicted, f1 in [
            ("a", 0, [0, 1, 1, 1], 0.7),
            ("a", 1, [0, 1, 1, 0], 1.0),
            ("b", 0, [1, 1, 0, 1], 0.2),
            ("b", 1, [0, 1, 1, 1], 0.7),
        ]
    ]
    accuracy, f1 = test_pairs(Results("made-up", "label:gender", tuple(runs)))
    correct = [[1, 1, 1, 0, 1, 1, 1, 1], [0, 1, 0, 0, 1, 1, 1, 0]]
    assert accuracy.tests["instances"].p == pytest.approx(stats.ttest_rel(*correct).pvalue)
    assert list(f1.tests) == ["seeds"]
    assert f1.tests["seeds"].difference == pytest.approx(0.4)


def test_a_flipped_pair_is_the_test_of_the_other_minus_the_one(tmp_path):
    ranks = {"a": [[1, 2, 9, 4], [3, 9, 1, 1]], "b": [[2, 1, 9, 9], [9, 9, 2, 1]]}
    there = test_pairs(made_up_results(tmp_path, ranks))[0].flipped()
    back = test_pairs(made_up_results(tmp_path, dict(reversed(ranks.items()))))[0]
    assert (there.one, there.other) == (back.one, back.other)
    for kind, test in back.tests.items():
        np.testing.assert_allclose(there.tests[kind], test)
