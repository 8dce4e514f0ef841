"""Paired tests between the rows of a comparison: t-tests by SciPy, Holm's correction, Cohen's d.

Of two rows, those of their seeds that both have count. Over instances, a pair is one test instance of one seed under
both rows; over seeds, the two means. S. Holm, *A simple sequentially rejective multiple test procedure*, Scandinavian
Journal of Statistics 6, 1979; J. Cohen, *Statistical power analysis for the behavioral sciences*, 1988: d_z is the mean
of the differences over their standard deviation.

Seeds draw the training and test parts of one dataset at random. Those parts overlap between seeds, so the seeds' means
depend on each other, and a plain t-test over them finds differences too often. C. Nadeau and Y. Bengio, *Inference for
the generalization error*, Machine Learning 52, 2003, therefore take as the variance of the mean of k differences with
sample variance s², where each seed trains on n_train and is measured on n_test instances,

    (1/k + n_test/n_train) · s²    instead of    s²/k

and compare the mean over its root with Student's t of k − 1 degrees of freedom: the corrected resampled t-test. The
test over seeds and its interval are that one; the test over instances is the plain one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

import numpy as np

from finetune_kit.comparison.results import Result, Results, Setting

KINDS = ("instances", "seeds")
"""What is paired."""
METHODS = {
    "instances": "paired t-test over the test instances of all seeds together",
    "seeds": "over seeds: t-test corrected for overlapping splits (Nadeau & Bengio 2003)",
}
"""How each kind is tested, in words."""
CAVEAT = "Instances of one user, or of one instance under several seeds, depend on each other: their p is optimistic."
"""What a reader of the test over instances must know."""
CONSTANT = 1e-12
"""Differences below this are rounding, as is a spread below this share of the mean: they are all alike."""


class Test(NamedTuple):
    """A paired t-test.

    Args:
        difference: Mean difference.
        low: Lower end of its 95 % confidence interval.
        high: Upper end.
        effect: Cohen's d_z; 0 where all differences are 0.
        p: Two-sided.
        p_holm: Corrected for all pairs of the same metric and kind; ``p`` itself until then.
        count: Number of pairs.
    """

    difference: float
    low: float
    high: float
    effect: float
    p: float
    p_holm: float
    count: int

    def flipped(self) -> Test:
        """Return the same test of the other minus the one."""
        return self._replace(difference=-self.difference, low=-self.high, high=-self.low, effect=-self.effect)


@dataclass(frozen=True)
class Pair:
    """Two rows under one metric.

    Args:
        one: A row.
        other: Another row of the same share of the data and backbone.
        metric: What is compared.
        protocol: The ranking protocol; empty for labels.
        tests: ``"instances"`` and ``"seeds"`` to the test of one minus other; absent where there is none: of
            macro F1 over instances, over a single seed, or where all differences are alike and not 0.
        difference: Mean difference over the seeds of both; None where they share none.
    """

    one: Setting
    other: Setting
    metric: str
    protocol: str
    tests: Mapping[str, Test]
    difference: float | None = None

    def flipped(self) -> Pair:
        """Return the pair the other way round."""
        tests = {kind: test.flipped() for kind, test in self.tests.items()}
        difference = None if self.difference is None else -self.difference
        return replace(self, one=self.other, other=self.one, tests=tests, difference=difference)


def test_pairs(results: Results) -> list[Pair]:
    """Return the tests of all pairs of rows on the first ranking protocol, corrected within each table.

    A family of tests, over which Holm's correction goes, is all pairs of one metric, kind, share of the data and
    backbone.
    """
    pairs, protocol = [], results.protocols[0]
    groups: dict[tuple[float, str], list[Setting]] = {}
    for setting in results.settings:
        groups.setdefault((setting.fraction, setting.backbone), []).append(setting)
    for metric, settings in itertools.product(results.metrics, groups.values()):
        values = {setting: _Values(results.of(setting), metric, protocol) for setting in settings}
        family = [
            Pair(one, other, metric, protocol, dict(_tests(ours, theirs)), _difference(ours, theirs))
            for (one, ours), (other, theirs) in itertools.combinations(values.items(), 2)
        ]
        pairs += _corrected(family)
    return pairs


test_pairs.__test__ = False  # pyrefly: ignore[missing-attribute]  (pytest takes it for a test)


def paired_t_test(differences: np.ndarray, overlap: float = 0.0) -> Test | None:
    """Return the t-test of differences ``(n,)`` against 0; where all are 0, p is 1.

    None where there is nothing to test by: of less than two, and where all are alike without being 0, which a few
    seeds or instances can be by chance.

    Args:
        differences: One minus other.
        overlap: ``n_test / n_train`` where the differences are of repeated splits of one dataset (see above); 0 makes
            the plain t-test.
    """
    from scipy import stats

    if len(differences) < 2:
        return None
    mean, deviation, count = float(differences.mean()), float(differences.std(ddof=1)), len(differences)
    if np.abs(differences).max() <= CONSTANT:
        return Test(0.0, 0.0, 0.0, 0.0, 1.0, 1.0, count)
    if deviation <= CONSTANT * abs(mean):
        return None
    error = math.sqrt(1 / count + overlap) * deviation  # of the mean
    p = 2 * float(stats.t.sf(abs(mean) / error, count - 1))
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return Test(mean, mean - half, mean + half, mean / deviation, p, p, count)


def overlap_of(runs: Sequence[Result]) -> float:
    """Return the test instances per training instance, in the mean over runs; 0 where runs don't say how many."""
    sizes = [run.metrics["instances"] for run in runs if "instances" in run.metrics]
    return float(np.mean([size["test"] / size["train"] for size in sizes])) if sizes else 0.0


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected by Holm's step-down method: the k-th smallest of n times n − k + 1, never falling."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, p[index] * (len(p) - rank)))
        corrected[index] = largest
    return corrected


class _Values:
    """What a row's runs have under one metric, by seed."""

    def __init__(self, runs: Sequence[Result], metric: str, protocol: str) -> None:
        self.runs = {run.seed: run for run in runs}
        self.mean = {run.seed: run.value(metric, protocol) for run in runs}
        self.instances = {} if metric == "f1_macro" else {run.seed: _in_order(run, metric, protocol) for run in runs}


def _in_order(run: Result, metric: str, protocol: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys (user, item or class) and values of a run's test instances, sorted by key."""
    key = np.stack([run.instances["user"], run.instances["item" if "item" in run.instances else "class"]])
    order = np.lexsort(key[::-1])
    return key[:, order], run.per_instance(metric, protocol)[order]


def _tests(one: _Values, other: _Values) -> Iterator[tuple[str, Test]]:
    seeds = sorted(one.mean.keys() & other.mean.keys())
    if seeds and one.instances:
        differences = []
        for seed in seeds:
            (keys, values), (other_keys, other_values) = one.instances[seed], other.instances[seed]
            assert np.array_equal(keys, other_keys), f"the runs of seed {seed} have other test instances"
            differences.append(values - other_values)
        if test := paired_t_test(np.concatenate(differences)):
            yield "instances", test
    differences = np.array([one.mean[seed] - other.mean[seed] for seed in seeds])
    if test := paired_t_test(differences, overlap_of([one.runs[seed] for seed in seeds])):
        yield "seeds", test


def _difference(one: _Values, other: _Values) -> float | None:
    seeds = one.mean.keys() & other.mean.keys()
    return fmean(one.mean[seed] - other.mean[seed] for seed in sorted(seeds)) if seeds else None


def _corrected(family: list[Pair]) -> list[Pair]:
    """Return pairs with Holm's correction over all that have a test of a kind."""
    for kind in KINDS:
        tested = [k for k, pair in enumerate(family) if kind in pair.tests]
        for k, p in zip(tested, holm([family[k].tests[kind].p for k in tested]), strict=True):
            tests = {**family[k].tests, kind: family[k].tests[kind]._replace(p_holm=p)}
            family[k] = replace(family[k], tests=tests)
    return family
