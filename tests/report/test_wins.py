import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from report_runs import GATED, PLAIN, made_up

from finetune_kit.comparison.results import Setting
from finetune_kit.data.dataset import Dataset
from finetune_kit.report.picture import looks
from finetune_kit.report.wins import _binned, _bins, find_wins, pair_to_compare
from finetune_kit.report.wins_picture import wins_picture, wins_words


def test_a_users_instances_count_as_one_user() -> None:
    group = np.array([0, 0, 0, 1, -1])
    user, seed = np.array([1, 1, 2, 3, 4]), np.array([0, 1, 1, 0, 0])
    gain = np.array([1.0, 0.0, 0.1, 0.3, 9.0])
    few, one = _bins(group, ["few", "one"], user, seed, gain)
    assert (few.label, few.users, few.mean) == ("few", 2, pytest.approx(0.3))  # of 0.5 and 0.1
    # t(0.975, 1) · s / √2 with s = 0.4 / √2
    assert few.half == pytest.approx(12.7062 * 0.2, rel=1e-4)
    assert few.seeds == (1.0, pytest.approx(0.05))
    assert one.users == 1
    assert math.isnan(one.half)
    assert math.isnan(one.seeds[1])


def test_many_values_are_binned_into_groups_of_about_one_size() -> None:
    group, labels = _binned(np.arange(1, 101))
    assert labels == ["≤20", "21–40", "41–60", "61–80", "≥81"]
    assert np.bincount(group).tolist() == [20] * 5


def test_few_values_are_their_own_groups() -> None:
    group, labels = _binned(np.array([3, 0, 3, 5]))
    assert labels == ["0", "3", "5"]
    assert group.tolist() == [1, 0, 1, 2]


def test_values_that_are_nearly_all_alike_still_fall_into_groups() -> None:
    values = np.concatenate([np.full(90, 7), np.arange(8, 18)])
    group, labels = _binned(values)
    assert len(labels) == group.max() + 1
    assert labels[0] == "≤7"


def test_a_highest_value_that_nearly_all_have_is_a_group_of_its_own() -> None:
    group, labels = _binned(np.concatenate([np.arange(1, 11), np.full(90, 11)]))
    assert labels == ["≤10", "≥11"]
    assert np.bincount(group).tolist() == [10, 90]


@given(arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 15)))
def test_the_labels_of_groups_hold_their_values(values: np.ndarray) -> None:
    group, labels = _binned(values)
    for value, label in zip(values, (labels[index] for index in group), strict=True):
        low, _, high = label.removeprefix("≤").removeprefix("≥").partition("–")
        assert value >= int(low) or label.startswith("≤")
        assert value <= int(high or low) or label.startswith("≥")
    assert len(labels) > 1 or len(np.unique(values)) == 1


def test_the_means_over_groups_are_those_of_the_metric(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset)
    wins = find_wins(results, (GATED, PLAIN), dataset, dataset.labels)
    assert list(wins.panels) == ["source events", "target items in all", "kind"]  # all have one item in training
    per_user = []
    for one, two in zip(results.of(GATED), results.of(PLAIN), strict=True):
        per_user.append(one.per_instance("mrr@5", "full") - two.per_instance("mrr@5", "full"))
    gain = np.mean(per_user, axis=0)  # over seeds; the instances are the same here
    aligned = dataset.labels["kind"].classes.index("aligned")
    users = np.flatnonzero(dataset.labels["kind"].value == aligned) + 1
    means = [gain[dataset.target.user == user].mean() for user in users]
    bins = {one.label: one for one in wins.panels["kind"]}
    assert list(bins) == ["aligned", "shifted"]  # 5 users are unrelated, too few
    assert bins["aligned"].users == len(users)
    assert bins["aligned"].mean == pytest.approx(np.mean(means))


def test_words_name_the_groups_whose_interval_excludes_zero(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset)
    wins = find_wins(results, (GATED, PLAIN), dataset, {})
    first = wins.panels["source events"][0]
    sure = dataclasses.replace(wins, panels={"source events": [first._replace(label="≤5", mean=0.2, half=0.1)]})
    assert wins_words(results, sure) == (
        "gated is better for users with: source events ≤5 (+0.2000 ± 0.1000). Among 1 groups, chance alone makes about "
        "1 stand out."
    )
    lost = dataclasses.replace(wins, panels={"kind": [first._replace(label="odd", mean=-0.2, half=0.1)]})
    assert wins_words(results, lost).startswith("plain is better for users with: kind odd (+0.2000 ± 0.1000).")
    unsure = dataclasses.replace(wins, panels={"source events": [first._replace(mean=0.2, half=0.3)]})
    assert wins_words(results, unsure) == "In none of the 1 groups does the interval exclude 0."
    assert "By source events:" in wins_picture(results, wins, looks(results)).alt


def test_the_pair_is_the_best_with_gates_and_the_best_without(tmp_path: Path, dataset: Dataset) -> None:
    rows = (Setting("plain-1"), Setting("gated-1"), Setting("gated-2"), Setting("plain-2"))
    assert pair_to_compare(made_up(tmp_path / "a", dataset, rows)) == (rows[2], rows[3])
    assert pair_to_compare(made_up(tmp_path / "b", dataset, (rows[0], rows[3]))) == (rows[3], rows[0])
    assert pair_to_compare(made_up(tmp_path / "c", dataset, rows[:1])) is None


def test_the_pair_is_chosen_on_validation_and_the_caption_says_so(tmp_path: Path, dataset: Dataset) -> None:
    rows = (Setting("plain-1"), Setting("plain-2"), GATED)
    results = made_up(tmp_path, dataset, rows)
    assert pair_to_compare(results) == (GATED, rows[1])
    for run in results.of(rows[0]):
        run.metrics["valid"]["full"]["mrr@5"] = 0.9
    pair = pair_to_compare(results)
    assert pair == (GATED, rows[0])
    said = wins_picture(results, find_wins(results, pair, dataset, {}), looks(results)).caption
    chosen = "by MRR@5, full ranking, on the validation part."
    assert said.endswith(f"The two are the best row with gates and the best without {chosen}")
    plain = find_wins(results, rows[:2], dataset, {})
    assert wins_picture(results, plain, looks(results)).caption.endswith(f"The two are the two best rows {chosen}")


def test_rows_without_a_common_seed_are_refused_by_name(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset)
    runs = (*results.of(GATED)[:1], *results.of(PLAIN)[1:])
    with pytest.raises(ValueError, match="gated and plain share no test instances"):
        find_wins(dataclasses.replace(results, runs=runs), (GATED, PLAIN), dataset, {})
