import csv
import io

import pytest
from made_up import made_up_label_run, made_up_results, made_up_run

from finetune_kit.comparison.results import Results, Setting
from finetune_kit.comparison.statistics import CAVEAT
from finetune_kit.comparison.summary import lost_to_references, signed
from finetune_kit.comparison.table import TableData, latex
from finetune_kit.comparison.tables import cost_table, main_tables, pair_tables
from finetune_kit.comparison.write import as_json, write_tables

TWO_SEEDS = {"good": [[1, 1, 9, 9], [1, 1, 1, 9]], "fair": [[1, 9, 9, 9], [1, 1, 9, 9]], "poor": [[9] * 4, [9] * 4]}


def test_the_main_table_has_mean_and_sample_deviation_over_seeds(tmp_path):
    (table,) = main_tables(made_up_results(tmp_path, TWO_SEEDS))
    assert table.columns == ("strategy", "MRR@5 full", "HR@5 full", "MRR@5 sampled", "HR@5 sampled")
    assert table.rows[0] == ("good", *["0.6250 ± 0.1768"] * 4)  # 0.5 and 0.75
    assert "mean ± standard deviation over seeds 0, 1" in table.caption
    assert "Tuning budget: none." in table.caption


def test_best_and_second_best_are_marked_by_what_is_shown(tmp_path):
    (table,) = main_tables(made_up_results(tmp_path, TWO_SEEDS))
    assert {(row, mark) for (row, _), mark in table.marks.items()} == {(0, "best"), (1, "second")}
    assert len(table.marks) == 8


@pytest.mark.parametrize(
    ("ranks", "marks"),
    [
        ([[1], [1], [9]], {(0, 1): "best", (1, 1): "best"}),
        ([[9], [1], [9]], {(1, 1): "best", (0, 1): "second", (2, 1): "second"}),
        ([[9], [9], [9]], {}),
        ([[9]], {}),
    ],
)
def test_equal_rows_share_their_mark(tmp_path, ranks, marks):
    results = made_up_results(tmp_path, {str(k): [rank * 2] for k, rank in enumerate(ranks)})
    (table,) = main_tables(results, ["full"])
    assert {place: mark for place, mark in table.marks.items() if place[1] == 1} == marks


def test_one_seed_has_no_deviation(tmp_path):
    (table,) = main_tables(made_up_results(tmp_path, {"a": [[1, 9]], "b": [[9, 9]]}))
    assert table.rows[0][1] == "0.5000"
    assert ": test part, seed 0;" in table.caption


def test_a_row_without_all_seeds_says_so_and_is_not_ranked(tmp_path):
    (table,) = main_tables(made_up_results(tmp_path, {"a": [[1, 1]], "b": [[1, 9], [9, 9]], "c": [[9, 9], [9, 9]]}))
    assert table.rows[0][0] == "a (1 of 2 seeds)"
    assert table.marks[1, 1] == "best"
    assert (0, 1) not in table.marks


def test_simple_rankings_stand_under_a_rule_and_are_not_ranked(tmp_path):
    references = {"popularity": {"mrr@5": 0.9, "hr@5": 0.1}, "user-knn": {"mrr@5": 0.0, "hr@5": 0.0}}
    results = made_up_results(tmp_path, TWO_SEEDS, references=references)
    (table,) = main_tables(results)
    assert [row[0] for row in table.rows] == ["good", "fair", "poor", "popularity", "user-knn"]
    assert table.rows[3][1:3] == ("0.9000 ± 0.0000", "0.1000 ± 0.0000")
    assert table.rules == {3}
    assert max(row for row, _ in table.marks) == 1
    assert lost_to_references(results) == [
        f"no strategy beats popularity in MRR@5 ({protocol}): good has 0.6250, it has 0.9000"
        for protocol in ("full", "sampled")
    ]


def test_a_simple_ranking_that_is_as_good_is_equal_and_not_better(tmp_path):
    results = made_up_results(tmp_path, TWO_SEEDS, references={"popularity": {"mrr@5": 0.625, "hr@5": 0.1}})
    assert lost_to_references(results)[0] == "no strategy beats popularity in MRR@5 (full): good equals its 0.6250"


def test_one_row_and_one_seed_have_no_legend_of_marks_and_deviations(tmp_path):
    results = made_up_results(tmp_path, {"a": [[1, 9]]})
    assert "best" not in main_tables(results)[0].caption
    assert "±" not in cost_table(results).caption


def test_each_share_of_the_data_has_a_table(tmp_path):
    runs = [
        made_up_run(tmp_path, Setting(name, fraction=fraction), 0, [1, 9])
        for fraction in (1.0, 0.1)
        for name in ("a", "b")
    ]
    results = Results("made-up", "items", tuple(runs))
    assert [table.title for table in main_tables(results)] == [
        "made-up, 100 % of the training instances",
        "made-up, 10 % of the training instances",
    ]
    assert [row[0] for row in main_tables(results)[1].rows] == ["a", "b"]
    assert [row[0] for row in cost_table(results).rows] == ["a 100% data", "b 100% data", "a 10% data", "b 10% data"]
    assert len(pair_tables(results)) == 4


def test_the_table_of_labels_has_accuracy_and_macro_f1(tmp_path):
    runs = [made_up_label_run(tmp_path, Setting("a"), seed, [0, 1], [0, seed], 0.5 + seed / 2) for seed in (0, 1)]
    results = Results("made-up", "label:gender", tuple(runs))
    (table,) = main_tables(results)
    assert table.columns == ("strategy", "Accuracy", "F1 macro")
    assert table.rows == (
        ("a", "0.7500 ± 0.3536", "0.7500 ± 0.3536"),
        ("majority", "0.5000 ± 0.0000", "0.3000 ± 0.0000"),
    )
    assert table.title.startswith("made-up, label:gender, ")
    assert pair_tables(results) == []
    assert as_json(results, tmp_path)["references"][0]["test"]["accuracy"]["mean"] == 0.5


def test_costs_are_parameters_seconds_and_instances_per_second(tmp_path):
    table = cost_table(made_up_results(tmp_path, {"a": [[1, 2], [2, 3]]}))
    assert table.rows == (("a", "1,000", "25.0 %", "3.0 ± 0.0", "2.0 ± 0.0", "1,234 ± 0", "10.0"),)


@pytest.mark.parametrize(
    ("value", "text"), [(-0.00001, "+0.0000"), (0.0, "+0.0000"), (-0.0031, "−0.0031"), (float("-inf"), "−∞")]
)
def test_signed_numbers_have_no_negative_zero(value, text):
    assert signed(value) == text


def test_captions_and_json_say_how_pairs_were_tested(tmp_path):
    results = made_up_results(tmp_path, TWO_SEEDS)
    caption, about = pair_tables(results)[0].caption, as_json(results, tmp_path)["about"]
    for text in (caption, about["instances"]):
        assert CAVEAT in text
    for text in (caption, about["seeds"]):
        assert "over seeds: t-test corrected for overlapping splits (Nadeau & Bengio 2003)" in text


def test_all_pairs_are_tested_and_those_of_one_row_can_be_picked(tmp_path):
    results = made_up_results(tmp_path, TWO_SEEDS)
    mrr, hr = pair_tables(results)
    assert [row[0] for row in mrr.rows] == ["good − fair", "good − poor", "fair − poor"]
    assert mrr.rows[0][1] == "+0.2500"
    assert mrr.columns[3:] == tuple(
        f"{head} ({kind})" for kind in ("instances", "seeds") for head in ("d", "p", "Holm")
    )
    assert mrr.rows[0][6:] == ("–", "–", "–")  # 0.25 in both seeds
    assert hr.title.startswith("HR@5 (full ranking)")
    against = pair_tables(results, Setting("fair"))[0]
    assert against.columns[0] == "fair minus"
    assert [row[:2] for row in against.rows] == [("good", "−0.2500"), ("poor", "+0.3750")]


TABLE = TableData(
    "50 % of a_b: all.",
    ("strategy", "MRR@5"),
    (("f_1 & co|", "0.1 ± 0.2"), ("b", "−1"), ("c", "<1")),
    {(0, 1): "best", (1, 1): "second"},
    frozenset({2}),
)


def test_latex_has_marks_rules_and_nothing_that_it_would_take_for_commands():
    assert TABLE.to_latex() == (
        "\\begin{table}\n\\centering\n\\caption{50 \\% of a\\_b: all.}\n\\begin{tabular}{lr}\n\\toprule\n"
        "strategy & MRR@5 \\\\\n\\midrule\nf\\_1 \\& co| & \\textbf{0.1 $\\pm$ 0.2} \\\\\n"
        "b & \\underline{$-$1} \\\\\n\\midrule\nc & $<$1 \\\\\n\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )
    assert latex(r"\{#}^~$") == r"\textbackslash{}\{\#\}\textasciicircum{}\textasciitilde{}\$"


def test_markdown_has_marks_and_an_empty_row_for_a_rule():
    assert TABLE.to_markdown().splitlines() == [
        "| strategy | MRR@5 |",
        "| --- | ---: |",
        r"| f_1 & co\| | **0.1 ± 0.2** |",
        "| b | *−1* |",
        "|  |  |",
        "| c | <1 |",
        "",
        "50 % of a_b: all.",
    ]


def test_csv_can_be_read_back():
    assert [*csv.reader(io.StringIO(TABLE.to_csv()))] == [list(TABLE.columns), *map(list, TABLE.rows)]


def test_the_files_have_all_tables_and_a_line_per_run(tmp_path):
    references = {"popularity": {"mrr@5": 0.9, "hr@5": 0.1}}
    results = made_up_results(tmp_path, TWO_SEEDS, references=references)
    write_tables(results, tmp_path)
    markdown = (tmp_path / "tables.md").read_text()
    assert "**0.6250 ± 0.1768**" in markdown
    assert "good − fair" in markdown
    assert "* tuning budget: none" in markdown
    assert (tmp_path / "table.tex").read_text().count(r"\begin{table}") == 4
    with (tmp_path / "table.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [(row["strategy"], row["seed"]) for row in rows[4:]] == [
        *(("poor", "0"), ("poor", "1"), ("popularity", "0"), ("popularity", "1"))
    ]
    assert float(rows[0]["test_full_mrr@5"]) == 0.5
    assert float(rows[-1]["test_sampled_mrr@5"]) == 0.9
    assert rows[0]["seconds_pretrain"] == "10.0"
