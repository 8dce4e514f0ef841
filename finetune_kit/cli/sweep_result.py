"""What `ftkit sweep` prints: the plan of a dry run, and in the end its trials and the best one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune_kit.cli.output import print_json, stdout, table, warn
from finetune_kit.files import read_metrics

if TYPE_CHECKING:
    from finetune_kit.studies.study import Row
    from finetune_kit.studies.sweep import Found, Search

MOST_ROWS = 20
"""Trials that are shown, the best ones; all are in the file."""


def print_plan(search: Search, as_json: bool) -> None:
    """Print what would be searched."""
    sweep = search.sweep
    facts = {
        "folder": str(search.folder),
        "dataset": search.dataset.name,
        "task": sweep.shared.run.task,
        "monitor": sweep.monitor,
        "sampler": sweep.sampler,
        "pruner": sweep.options.pruner,
        "trials": sweep.num_trials,
        "seeds": list(sweep.seeds),
        "search": {dimension.path: dimension.text for dimension in sweep.space},
    }
    if as_json:
        print_json(facts)
        return
    for path, text in facts["search"].items():
        stdout().print(f"{path} = {text}")
    seeds = f", each with seeds {', '.join(map(str, sweep.seeds))}" if len(sweep.seeds) > 1 else ""
    stdout().print(
        f"{sweep.num_trials} trials ({sweep.sampler}, pruner {sweep.options.pruner}){seeds}, the best by validation "
        f"{sweep.monitor}, on {search.dataset.name}, below {search.folder}"
    )


def print_found(search: Search, found: Found, as_json: bool) -> None:
    """Print the trials, and the test metrics of the best one."""
    if as_json:
        print_json(_as_json(search, found))
        return
    _print_rows(search, found.rows)
    failed = sum(row.state == "failed" for row in found.rows)
    if failed:
        warn(f"{failed} of {len(found.rows)} trials failed, see above; the same command tries them again")
    if found.num_elsewhere or found.best is None:
        print(
            f"other commands are at work on {found.num_elsewhere} trials of this search; the last one chooses the best"
        )
        return
    for seed, folder in found.runs.items():
        test = read_metrics(folder)["test"]
        name = f"seed {seed}, " if len(found.runs) > 1 else ""
        for protocol, values in test.items() if isinstance(next(iter(test.values())), dict) else [("", test)]:
            told = ", ".join(f"{metric} {value:.4f}" for metric, value in values.items())
            stdout().print(f"test of trial {found.best.place}, {name}{protocol and f'{protocol}: '}{told}")
    stdout().print(f"ftkit run --config {search.folder / 'best.toml'}", style="bold")


def _print_rows(search: Search, rows: Sequence[Row]) -> None:
    from finetune_kit.studies.plan import number

    sweep = search.sweep
    names = [dimension.path for dimension in sweep.space]
    heads = [name.replace(".", ".\n", 1) for name in names]
    shown = table("", "trial", *heads, f"valid\n{sweep.monitor}", "epoch", "state", right=("trial", "epoch"))
    for column in shown.columns[1 : len(names) + 2]:
        column.justify = "right"
    ranked = sorted(rows, key=lambda row: (row.state != "complete", -(row.value or 0), row.place))
    for row in ranked[:MOST_ROWS]:
        value = "–" if row.value is None else f"{row.value:.4f}"
        values = [number(row.values[name]) if name in row.values else "–" for name in names]
        shown.add_row(str(row.place), *values, value, str(row.about.get("best_epoch", "–")), row.state)
    stdout().print(shown)
    if len(rows) > MOST_ROWS:
        print(f"{len(rows) - MOST_ROWS} others in {search.folder / 'trials.parquet'}")


def _as_json(search: Search, found: Found) -> dict[str, Any]:
    best = found.best
    is_chosen = best is not None and bool(found.runs)
    return {
        "folder": str(search.folder),
        "dataset": search.dataset.name,
        "task": search.sweep.shared.run.task,
        "monitor": search.sweep.monitor,
        "trials": [
            {
                "trial": row.place,
                "state": row.state,
                "value": row.value,
                "options": dict(row.values),
                **{name: row.about[name] for name in ("best_epoch", "epochs", "seconds", "fault") if name in row.about},
            }
            for row in found.rows
        ],
        "best": None
        if best is None or not is_chosen
        else {
            "trial": best.place,
            "value": best.value,
            "options": dict(best.values),
            "config": str(search.folder / "best.toml"),
            "runs": [
                {"seed": seed, "folder": str(folder), "test": read_metrics(folder)["test"]}
                for seed, folder in found.runs.items()
            ],
        },
    }
