"""Where one of two rows wins: differences per user, by length of history and number of target items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy import stats

from finetune_kit.comparison.results import Result, Results, Setting
from finetune_kit.comparison.summary import is_whole
from finetune_kit.data.dataset import Dataset, Labels
from finetune_kit.files import read_table

MAX_BINS = 5
MIN_USERS = 10
"""Smaller groups tell nothing, and their intervals would dwarf all others; they are left out."""
_MAX_VALUES = 7
"""Numbers with no more different values than that are not binned."""


class Bin(NamedTuple):
    """A group of users.

    Args:
        label: Which.
        users: How many.
        mean: Mean difference over users, each user's mean over their test instances of all seeds.
        half: Half the width of the 95% confidence interval over users (Student's t); NaN for a single user.
        seeds: The same mean for the instances of each seed alone; NaN where a seed has none.
    """

    label: str
    users: int
    mean: float
    half: float
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Wins:
    """How much better the first of two rows is than the second, by groups of users.

    Args:
        first: The one row.
        second: The other.
        metric: Of what the differences are.
        protocol: Its ranking protocol; empty for profile labels.
        panels: What groups the users → the groups.
    """

    first: Setting
    second: Setting
    metric: str
    protocol: str
    panels: Mapping[str, list[Bin]]


def pair_to_compare(results: Results) -> tuple[Setting, Setting] | None:
    """Return the best row with gates and the best without, else the two best rows; None for a single row.

    Rows are looked for at the largest fraction of the data, by the mean of the first metric on validation: chosen on
    the test part, whose differences are shown, the best rows would look better than they are. Those that lack seeds
    come last.
    """
    largest = max(setting.fraction for setting in results.settings)
    ranked = sorted(
        (setting for setting in results.settings if setting.fraction == largest),
        key=lambda row: (not is_whole(results, row), -_on_validation(results, row)),
    )
    gated = [setting for setting in ranked if results.of(setting)[0].policy is not None]
    plain = [setting for setting in ranked if setting not in gated]
    if gated and plain:
        return gated[0], plain[0]
    return (ranked[0], ranked[1]) if len(ranked) > 1 else None


def _on_validation(results: Results, setting: Setting) -> float:
    metric, protocol = results.metrics[0], results.protocols[0]
    return fmean(run.value(metric, protocol, part="valid") for run in results.of(setting))


def find_wins(results: Results, pair: tuple[Setting, Setting], dataset: Dataset, kinds: Mapping[str, Labels]) -> Wins:
    """Return where the first of a pair wins.

    Raises:
        ValueError: When the two share no seed with the same test instances, or no groups are large enough.
    """
    metric, protocol = results.metrics[0], results.protocols[0]
    paired = [both for both in _by_seed(results, pair) if _same_instances(*both)]
    if not paired:
        raise ValueError(f"{results.name(pair[0])} and {results.name(pair[1])} share no test instances")
    seed = np.concatenate([np.full(len(one.instances["user"]), index) for index, (one, _) in enumerate(paired)])
    user = np.concatenate([one.instances["user"] for one, _ in paired]).astype(np.int64)
    gain = np.concatenate(
        [one.per_instance(metric, protocol) - two.per_instance(metric, protocol) for one, two in paired]
    )
    counts = np.bincount(dataset.target.user, minlength=dataset.num_users + 1)
    groups = {
        "source events": _binned(dataset.source_lengths[user - 1]),
        "target items in training": _binned(np.concatenate([_trained(one) for one, _ in paired])),
        "target items in all": _binned(counts[user]),
    }
    groups |= {name: _classes(label, user) for name, label in kinds.items()}
    panels = {name: _bins(group, labels, user, seed, gain) for name, (group, labels) in groups.items()}
    panels = {name: [one for one in bins if one.users >= MIN_USERS] for name, bins in panels.items()}
    panels = {name: bins for name, bins in panels.items() if len(bins) > 1}
    if not panels:
        raise ValueError(f"no two groups of users have {MIN_USERS} users each")
    return Wins(*pair, metric, protocol, panels)


def _by_seed(results: Results, pair: tuple[Setting, Setting]) -> list[tuple[Result, Result]]:
    first, second = ({run.seed: run for run in results.of(setting)} for setting in pair)
    return [(run, second[seed]) for seed, run in first.items() if seed in second]


def _same_instances(one: Result, two: Result) -> bool:
    answer = "item" if "item" in one.instances else "class"
    return all(np.array_equal(one.instances[name], two.instances[name]) for name in ("user", answer))


def _trained(run: Result) -> np.ndarray:
    """Return for each test instance how many training instances its user has."""
    split = read_table(run.folder / "split.parquet")
    user = run.instances["user"]
    highest = int(max(user.max(), split["user"].max()))
    return np.bincount(split["user"][split["part"] == "train"], minlength=highest + 1)[user]


def _binned(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return each value's group and the groups' labels: single values where they are few, else about equal groups."""
    different = np.unique(values)
    if len(different) <= _MAX_VALUES:
        return np.searchsorted(different, values), [str(value) for value in different]
    inner = np.quantile(values, np.arange(1, MAX_BINS) / MAX_BINS, method="lower")
    inner = np.minimum(inner + 1, different[-1])  # where the highest value is most of all, it is a group of its own
    edges = np.unique(np.concatenate([[different[0]], inner, [different[-1] + 1]]))  # a group is [edge, next edge)
    labels = [str(low) if low == high else f"{low}–{high}" for low, high in zip(edges[:-1], edges[1:] - 1, strict=True)]
    labels = [f"≤{edges[1] - 1}", *labels[1:-1], f"≥{edges[-2]}"]
    return np.searchsorted(edges, values, side="right") - 1, labels


def _classes(label: Labels, user: np.ndarray) -> tuple[np.ndarray, list[str]]:
    return label.value[user - 1], list(label.classes)


def _bins(group: np.ndarray, labels: list[str], user: np.ndarray, seed: np.ndarray, gain: np.ndarray) -> list[Bin]:
    """Return the groups that have users; all arrays are ``(instances,)``; a group of -1 is left out."""
    bins = []
    for index, label in enumerate(labels):
        here = group == index
        if here.any():
            means = _user_means(user[here], gain[here])
            seeds = [_user_means(user[here & (seed == s)], gain[here & (seed == s)]) for s in range(seed.max() + 1)]
            by_seed = tuple(float(own.mean()) if len(own) else float("nan") for own in seeds)
            bins.append(Bin(label, len(means), float(means.mean()), _half_interval(means), by_seed))
    return bins


def _user_means(user: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return the mean gain per user, ``(users,)``."""
    _, place, count = np.unique(user, return_inverse=True, return_counts=True)
    return np.bincount(place, weights=gain) / count


def _half_interval(values: np.ndarray) -> float:
    """Return half the width of the 95% confidence interval of a mean."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
