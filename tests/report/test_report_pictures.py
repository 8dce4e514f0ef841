from pathlib import Path

import matplotlib
import numpy as np
from report_runs import GATED, PLAIN, give_gates, made_up

from finetune_kit.comparison.results import Setting
from finetune_kit.data.dataset import Dataset, Labels
from finetune_kit.report.curves import curve_pictures, mean_curve, monitored
from finetune_kit.report.diversity import diversity_pictures, policies, policy_table
from finetune_kit.report.heatmap import chance_gap, policy_pictures, usage, usage_by_kind
from finetune_kit.report.metrics import metrics_pictures
from finetune_kit.report.picture import looks, style

FRACTIONS = tuple(Setting(name, fraction=fraction) for fraction in (1.0, 0.1) for name in ("plain", "gated"))


def test_a_picture_is_the_same_in_both_formats_each_time(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, files=False)
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        with style():
            pictures = [*metrics_pictures(results, looks(results)), *policy_pictures(results, {})]
        for picture in pictures:
            assert picture.write(folder) == (folder / f"{picture.name}.svg").read_bytes()
        written.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert list(written[0]) == ["metrics.png", "metrics.svg", "policy.png", "policy.svg"]
    assert written[0] == written[1]


def test_fractions_of_the_data_get_pictures_of_their_own_and_keep_their_rows_looks(
    tmp_path: Path, dataset: Dataset
) -> None:
    results = made_up(tmp_path, dataset, FRACTIONS, seeds=(0,), files=False)
    found = looks(results)
    assert found[FRACTIONS[0]] == found[FRACTIONS[2]] != found[FRACTIONS[1]]
    with style():
        pictures = list(metrics_pictures(results, found))
    assert [picture.name for picture in pictures] == ["metrics-100-percent", "metrics-10-percent"]
    assert pictures[1].title == "Metrics per strategy, 10 % of the training data"
    assert "plain 0." in pictures[1].alt


def test_no_two_of_many_rows_look_alike(tmp_path: Path, dataset: Dataset) -> None:
    rows = tuple(Setting(f"s{index}") for index in range(40))
    assert len(set(looks(made_up(tmp_path, dataset, rows, seeds=(0,), files=False)).values())) == 40


def test_many_rows_get_a_panel_each(tmp_path: Path, dataset: Dataset) -> None:
    rows = tuple(Setting(f"s{index}") for index in range(9))
    results = made_up(tmp_path, dataset, rows, seeds=(0,), files=False)
    with style():
        pictures = list(curve_pictures(results, looks(results)))
    assert [(picture.name, len(picture.figure.axes)) for picture in pictures] == [("curves", 9), ("loss", 9)]


def test_the_mean_curve_goes_on_with_the_seeds_that_still_train() -> None:
    curve = mean_curve([np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0])])
    assert (curve.epoch.tolist(), curve.mean.tolist(), curve.whole) == ([1, 2, 3], [2, 3, 5], 2)


def test_simple_rankings_far_off_are_named_so_that_rows_keep_their_room(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, files=False)
    for run in results.runs:
        run.metrics["references"]["oracle"] = {"full": {"mrr@5": 9.0, "hr@5": 9.0}}
    with style():
        (picture,) = metrics_pictures(results, looks(results))
    axes = picture.figure.axes[0]
    assert axes.get_xlim()[1] < 1
    assert "oracle 9.0000 →" in axes.get_title(loc="right")


def test_labels_are_drawn_by_accuracy(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, task="label:kind", files=False)
    assert monitored(results) == "accuracy"
    with style():
        (picture,) = metrics_pictures(results, looks(results))
    assert [axes.get_title() or axes.get_title(loc="left") for axes in picture.figure.axes] == ["Accuracy", "F1 macro"]


def test_usage_is_the_mean_gate_and_shorter_backbones_leave_cells_empty(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, seeds=(0, 1), files=False)
    one, two = results.of(GATED)
    gates = np.tile([0.0, 1.0], (60, 1))
    gates[:15, 0] = 1
    give_gates(results, GATED, gates)
    vars(two)["policy"]["gate_2"] = np.full(60, 0.5)
    np.testing.assert_array_equal(usage([one, two]), [[0.25, 1, np.nan], [0.25, 1, 0.5]])


def test_kinds_of_users_are_told_apart_and_chance_tells_less(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, seeds=(0,), files=False)
    kind = np.arange(60) % 2
    kind[:4] = -1  # not known
    give_gates(results, GATED, (np.arange(60) % 2).astype(float)[:, None])
    labels = Labels(("even", "odd", "nobody"), kind)
    (run,) = results.of(GATED)
    names, values = usage_by_kind(run, labels)
    assert names == ["even (28)", "odd (28)"]
    assert values.tolist() == [[0], [1]]
    assert 0 < chance_gap([run], labels) < 0.6


def test_the_largest_difference_of_all_runs_is_held_against_the_largest_that_chance_gives_in_any(
    tmp_path: Path, dataset: Dataset
) -> None:
    kind, block = np.arange(60) % 2, np.arange(60) % 4 // 2
    results = made_up(tmp_path, dataset, seeds=(0, 1), files=False)
    one, two = results.of(GATED)
    # seed 0: the kinds differ by 0.1 and nothing else does; seed 1: they are alike, but any shuffle differs by more
    vars(one)["policy"] = {"user": np.arange(1, 61), "gate_0": 0.1 * kind}
    vars(two)["policy"] = {"user": np.arange(1, 61), "gate_0": block.astype(float)}
    labels = Labels(("even", "odd"), kind)
    *_, picture = policy_pictures(results, {"kind": labels})
    assert "of all runs and blocks, is 0.10: gated, seed 0, block 1;" in picture.caption
    assert chance_gap([one], labels) < 0.1 < chance_gap([two], labels) == chance_gap([one, two], labels)
    assert f"differ by up to {chance_gap([two], labels):.2f} in some run and block" in picture.caption


def test_users_of_no_known_kind_take_no_part_in_the_shuffles(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, seeds=(0,), files=False)
    kind = np.where(np.arange(60) < 40, np.arange(60) % 2, -1)
    give_gates(results, GATED, (kind == -1).astype(float)[:, None])  # those known all do the same
    assert chance_gap(results.of(GATED), Labels(("even", "odd"), kind)) == 0


def test_the_table_of_policies_has_a_random_one_below(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, files=False)
    give_gates(results, GATED, np.tile([1.0, 0.0, 1.0], (60, 1)))
    table = policy_table(results)
    assert table.rows[0] == (
        "gated, seed 0",
        *("0.667", "0.000", "0.000", "0.000", "1", "1.00", "101", "100 %", "0.875"),
    )
    assert table.rows[2][0] == "random, 60 users × 3 blocks"
    assert table.rules == {2}
    assert [one.setting for one in policies(results)] == [GATED, GATED]


def test_without_gates_there_is_no_picture_of_policies(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, (PLAIN,), files=False)
    assert not list(policy_pictures(results, {}))
    assert not list(diversity_pictures(results, looks(results)))


def test_any_name_can_be_drawn(tmp_path: Path, dataset: Dataset) -> None:
    names = ("$x_{$", "漢字", "_hidden", "<script>alert(1)</script>", "x" * 200)
    results = made_up(tmp_path, dataset, tuple(map(Setting, names)), seeds=(0,), files=False)
    with style():
        (picture,) = curve_pictures(results, looks(results))
    assert b"<script" not in picture.write(tmp_path)


def test_drawing_leaves_the_users_settings_of_matplotlib_alone() -> None:
    with matplotlib.rc_context({"font.size": 20.0, "svg.hashsalt": "mine"}):
        before = {name: matplotlib.rcParams[name] for name in matplotlib.rcParams}
        with style():
            assert matplotlib.rcParams["svg.hashsalt"] == "finetune-kit"
        assert {name: matplotlib.rcParams[name] for name in matplotlib.rcParams} == before
