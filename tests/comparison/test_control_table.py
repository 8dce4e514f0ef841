import numpy as np
import pytest
from scipy import stats

from finetune_kit.comparison.control import collapse_notes, control_table, controls
from finetune_kit.comparison.results import Result, Results, Setting
from finetune_kit.comparison.statistics import CAVEAT, KINDS
from finetune_kit.comparison.write import _control
from finetune_kit.files import write_table


def run(folder, strategy, seed, ranks, control, reason=None):
    """Return a run with given ranks per test instance, and those of its control."""
    folder = folder / f"{strategy}-{seed}"
    columns = {"user": np.arange(len(ranks)), "item": np.ones(len(ranks), int), "rank_full": np.array(ranks, float)}
    metrics = {"test": {"full": {"mrr@5": np.mean([(r <= 5) / r for r in ranks])}}}
    if control is not None:
        columns["control_rank_full"] = np.array(control, float)
        value = np.mean([(r <= 5) / r for r in control])
        metrics |= {"instances": {"train": 4, "test": 1}}
        metrics |= {"gates": {"mean": [1.0, 0.5]}, "control": {"gates": [1, 0], "test": {"full": {"mrr@5": value}}}}
    if reason:
        metrics |= {"gates": {"mean": [1.0]}, "control": {"reason": reason}}
    write_table(folder / "instances.parquet", columns)
    return Result(Setting(strategy), seed, folder, metrics)


def test_each_policy_stands_beside_its_single_choice_and_others_are_left_out(tmp_path):
    runs = (
        run(tmp_path, "finetune-all", 0, [1, 1], None),
        run(tmp_path, "finetune-all", 1, [1, 1], None),
        run(tmp_path, "uaf-hard", 0, [1, 2], [2, 2]),
        run(tmp_path, "uaf-hard", 1, [1, 9], [4, 9]),
    )
    table = control_table(Results("toy", "items", runs))
    (row,) = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert row["strategy"] == "uaf-hard"
    assert row["fine-tuned blocks"] == "1.5 ± 0.0"
    assert row["per user"].startswith("0.6250")  # (¾ + ½)/2
    assert row["single"].startswith("0.3125")  # (½ + ⅛)/2
    assert row["difference"] == "+0.3125"  # of ½, 0, ¾, 0
    # t = 0.3125 / (sd 0.3750 / √4) = 1.667 with 3 degrees of freedom
    assert float(row["p (instances)"]) == pytest.approx(0.194, abs=1e-3)
    # of ¼ and ⅜: t = 0.3125 / (sd 0.0884 · √(½ + ¼)) = 4.082 with 1 degree of freedom
    assert float(row["p (seeds)"]) == pytest.approx(2 * stats.t.sf(4.0825, 1), abs=1e-3)
    assert [row[f"p ({kind})"] for kind in KINDS] == [row[f"Holm ({kind})"] for kind in KINDS]
    assert CAVEAT in table.caption
    assert "Nadeau & Bengio" in table.caption


def test_seeds_without_a_single_choice_are_left_out_and_said(tmp_path):
    runs = (
        run(tmp_path, "uaf-hard", 0, [1, 2], [2, 2]),
        run(tmp_path, "uaf-hard", 1, [9, 9], None, reason="too many"),
        run(tmp_path, "uaf-rl", 0, [9, 9], None, reason="crashed"),
    )
    table = control_table(Results("toy", "items", runs))
    (row,) = table.rows
    assert row[0] == "uaf-hard (1 of 2 seeds)"
    assert row[2] == "0.7500"
    assert row[-2:] == ("–", "–")
    assert "No single choice of blocks was measured beside uaf-hard, seed 1: too many." in table.caption
    assert "No single choice of blocks was measured beside uaf-rl, seed 0: crashed." in table.caption


def test_one_test_instance_has_no_test(tmp_path):
    (row,) = control_table(Results("toy", "items", (run(tmp_path, "uaf-hard", 0, [1], [2]),))).rows
    assert row[4:] == ("+0.5000", *("–",) * 6)


def test_json_has_the_table_too(tmp_path):
    runs = (run(tmp_path, "uaf-hard", 0, [1, 2], [2, 2]), run(tmp_path, "uaf-hard", 1, [1, 9], [4, 9]))
    (control,) = (_control(Results("toy", "items", runs), found) for found in controls(Results("toy", "items", runs)))
    assert (control["name"], control["metric"], control["runs"]) == ("uaf-hard", "mrr@5", [0, 1])
    assert (control["value"]["mean"], control["single"]["mean"], control["difference"]) == (0.625, 0.3125, 0.3125)
    assert control["instances"]["p"] == pytest.approx(0.194, abs=1e-3)
    assert control["seeds"]["p_holm"] == control["seeds"]["p"]


def test_policies_that_treat_users_alike_are_noted_by_row(tmp_path):
    runs = [run(tmp_path, "uaf-hard", seed, [1, 2], [2, 2]) for seed in (0, 1, 2)]
    for one, mean in zip(runs, ([1.0, 0.0], [1.0, 0.001], [0.5, 0.5]), strict=True):
        one.metrics["gates"].update(mean=mean, is_collapsed=mean[0] == 1)
    assert [*collapse_notes(Results("toy", "items", tuple(runs)))] == [
        "uaf-hard: the policy treats (nearly) all users alike in seeds 0, 1 (gates 1.00 0.00)"
    ]


def test_without_a_policy_there_is_no_table(tmp_path):
    assert control_table(Results("toy", "items", (run(tmp_path, "finetune-all", 0, [1, 1], None),))) is None
