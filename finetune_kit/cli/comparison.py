"""What `ftkit compare` prints: the plan of a dry run, and the closing tables."""

from __future__ import annotations

from dataclasses import replace
from textwrap import fill
from typing import TYPE_CHECKING

from finetune_kit.cli.output import print_json, stdout, table
from finetune_kit.foreign import visible

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_kit.comparison.compare import Prepared
    from finetune_kit.comparison.results import Results, Setting
    from finetune_kit.comparison.table import TableData

STYLES = {"best": "bold", "second": "underline"}


def print_plan(prepared: Prepared, as_json: bool) -> None:
    """Print which runs there would be, and which of them are there already."""
    execution = prepared.execution
    runs = [
        {"run": execution.title(cell), "folder": str(execution.path(cell)), "finished": execution.is_finished(cell)}
        for cell in execution.cells
    ]
    config, notes = execution.cells[0].config, list(prepared.record().notes)
    backbones = list(prepared.comparison.backbones)
    facts = {"dataset": execution.dataset.name, "task": config.run.task, "backbones": backbones}
    if config.run.preset != "none":
        facts["preset"] = config.run.preset
    if as_json:
        print_json({"folder": str(execution.folder), **facts, "budget": prepared.budget, "notes": notes, "runs": runs})
        return
    for run in runs:
        stdout().print(f"{run['run']}{' (there already)' if run['finished'] else ''}", markup=False)
    missing = sum(not run["finished"] for run in runs)
    planned = f"{len(runs)} run{'s' if len(runs) > 1 else ''}, {missing} to train, below {execution.folder}"
    about = ", ".join(
        f"{name.removesuffix('s')} {', '.join(value) if isinstance(value, list) else value}"
        for name, value in facts.items()
    )
    stdout().print("\n".join([planned, about, prepared.budget, *notes]), markup=False)


def print_comparison(results: Results, folder: Path, report: Path | None) -> None:
    """Print the main tables, the tests against the best row, costs, notes and where all of it is."""
    from finetune_kit.comparison.control import control_table
    from finetune_kit.comparison.summary import by_fraction
    from finetune_kit.comparison.tables import cost_table, main_tables, pair_tables

    for protocol in results.protocols:
        for data in main_tables(results, [protocol]):
            _print(data)
    legend = ["best bold, second best underlined"] if len(results.settings) > 1 else []
    legend += ["± is the standard deviation over seeds"] if len(results.seeds) > 1 else []
    print("; ".join(legend), end="\n\n" if legend else "")
    for best in _best_rows(results):
        for data in pair_tables(results, best)[:1]:
            _print(data, ("diff", "d (inst", "Holm"))
            text = f"d is Cohen's d, Holm is p corrected for all pairs; {_about(data)}"
            print(fill(text, 80), end="\n\n")
    if control := control_table(results):
        _print(control, ("per", "single", "Holm"))
        text = f"single: the best choice of blocks for all users on validation, at equal usage; {_about(control)}"
        print(fill(text, 80), end="\n\n")
    parts = by_fraction(results)
    for fraction, part in parts.items():
        title = f"What training costs, {fraction * 100:g} % of the training instances" if len(parts) > 1 else ""
        _print(replace(cost_table(part), title=title), ("trained", "fine", "inst", "pre"))
    for note in results.notes:
        stdout().print(note, markup=False)
    files = "tables.md, table.tex, table.csv" + (f", {report.name}" if report else "")
    stdout().print(f"{files} in\n{folder}", style="bold", markup=False)


def _best_rows(results: Results) -> list[Setting]:
    """Return the best row of each share of the data and backbone, by the first metric; those without all seeds last."""
    from finetune_kit.comparison.summary import is_whole, of_row

    groups: dict[tuple[float, str], list[Setting]] = {}
    for setting in results.settings:
        groups.setdefault((setting.fraction, setting.backbone), []).append(setting)
    best = []
    for rows in groups.values():
        ranked = [setting for setting in rows if is_whole(results, setting)] or rows
        metric, protocol = results.metrics[0], results.protocols[0]
        best.append(max(ranked, key=lambda setting: of_row(results, setting, metric, protocol).mean))
    return best


def _about(data: TableData) -> str:
    """Return how the tests of a table were made, and what to keep in mind of them."""
    from finetune_kit.comparison.statistics import CAVEAT, KINDS, METHODS

    kinds = [kind for kind in KINDS if any(head.endswith(f"({kind})") for head in data.columns)]
    text = f"{'; '.join(METHODS[kind] for kind in kinds)}."
    return f"{text} {CAVEAT}" if "instances" in kinds else text


def _print(data: TableData, heads: tuple[str, ...] = ("",)) -> None:
    """Print the first column of a table, and those whose heads begin as given; best bold, second best underlined."""
    from rich.text import Text

    columns = [0, *(k for k, head in enumerate(data.columns) if k and head.startswith(heads))]
    names = [data.columns[k].replace(" (", "\n(").replace("-", "-\n") if k else data.columns[k] for k in columns]
    made = table(data.title, *names, right=names[1:])
    made.columns[0].no_wrap = True
    for i, row in enumerate(data.rows):
        cells = [Text(visible(row[k]), style=STYLES.get(data.marks.get((i, k), ""), "")) for k in columns]
        made.add_row(*cells, end_section=i + 1 in data.rules)
    stdout().print(made)
