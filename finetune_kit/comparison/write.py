"""The files of a comparison: ``tables.md``, ``table.tex``, ``table.csv``, and all of it as plain values for JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_kit.comparison import summary
from finetune_kit.comparison.control import Control, control_table, controls
from finetune_kit.comparison.results import Result, Results
from finetune_kit.comparison.statistics import CAVEAT, METHODS, test_pairs
from finetune_kit.comparison.table import markdown
from finetune_kit.comparison.tables import cost_table, main_tables, pair_tables
from finetune_kit.files import write_text


def write_tables(results: Results, folder: Path) -> None:
    """Write the tables into the comparison's folder.

    ``tables.md`` and ``table.tex`` have the main tables, policies against a single choice for all users, what training
    costs, and the tests of all pairs; ``table.csv`` has a line per run, see `run_rows`.
    """
    control = control_table(results)
    tables = [*main_tables(results), *([control] if control else []), cost_table(results), *pair_tables(results)]
    notes = "\n".join(f"* {markdown(note)}" for note in results.notes)
    text = "\n".join(table.to_markdown() for table in tables)
    write_text(folder / "tables.md", f"# {markdown(f'{results.dataset}, {results.task}')}\n\n{text}\n{notes}\n")
    head = "% needs the packages booktabs and, before TeX Live 2018, inputenc with utf8\n"
    write_text(folder / "table.tex", head + "\n".join(table.to_latex() for table in tables))
    write_text(folder / "table.csv", _csv(results))


def _csv(results: Results) -> str:
    rows = [*run_rows(results)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def run_rows(results: Results) -> Iterator[dict[str, Any]]:
    """Yield a row per run and, below them, one per seed and share of the data of each simple ranking.

    Columns: ``strategy`` (or the ranking's name), ``variant``, ``backbone``, ``fraction``, ``seed``; every metric as
    ``valid_full_mrr@5``, for labels ``valid_accuracy``; ``best_epoch``, ``epochs``, ``trainable_parameters``,
    ``total_parameters``, ``instances_per_second``, ``seconds_pretrain``, ``seconds_finetune``, ``seconds_evaluate``;
    ``folder``.
    """
    for run in results.runs:
        metrics = run.metrics
        row = {**run.setting._asdict(), "seed": run.seed}
        row |= {f"{part}_{name}": value for part in ("valid", "test") for name, value in _flat(metrics[part])}
        kept = ("best_epoch", "epochs", "trainable_parameters", "total_parameters", "instances_per_second")
        row |= {name: metrics[name] for name in kept}
        row |= {f"seconds_{name}": value for name, value in metrics["seconds"].items()}
        yield {**row, "folder": str(run.folder)}
    yield from _reference_rows(results)


def _reference_rows(results: Results) -> Iterator[dict[str, Any]]:
    seen = set()
    for run in results.runs:
        for name, values in run.metrics.get("references", {}).items():
            if (key := (name, run.setting.fraction, run.seed)) not in seen:
                seen.add(key)
                row = {"strategy": name, "fraction": run.setting.fraction, "seed": run.seed}
                yield row | {f"test_{metric}": value for metric, value in _flat(values)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield names and numbers; those of ranking protocols as ``full_mrr@5``."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}_")
        else:
            yield f"{prefix}{name}", value


def as_json(results: Results, folder: Path) -> dict[str, Any]:
    """Return everything that `ftkit compare` prints, as plain values."""
    return {
        "folder": str(folder),
        "dataset": results.dataset,
        "task": results.task,
        "seeds": results.seeds,
        "rows": [_row(results, results.of(setting)) for setting in results.settings],
        "references": _references(results),
        "pairs": _pairs(results),
        "controls": [_control(results, control) for control in controls(results)],
        "about": {"instances": f"{METHODS['instances']}. {CAVEAT}", "seeds": METHODS["seeds"]},
        "notes": list(results.notes),
    }


def _row(results: Results, runs: list[Result]) -> dict[str, Any]:
    """Return a row's means over seeds, and its runs."""
    setting = runs[0].setting
    test = {}
    for protocol in results.protocols:
        values = {metric: _values(summary.of_row(results, setting, metric, protocol)) for metric in results.metrics}
        test |= {protocol: values} if protocol else values
    names = ("best_epoch", "instances_per_second")
    return {
        "name": results.name(setting),
        **setting._asdict(),
        "test": test,
        "trainable_parameters": runs[0].metrics["trainable_parameters"],
        "total_parameters": runs[0].metrics["total_parameters"],
        **{name: _values(summary.summarise([run.metrics[name] for run in runs])) for name in names},
        "seconds": {
            stage: _values(summary.summarise([run.metrics["seconds"][stage] for run in runs]))
            for stage in runs[0].metrics["seconds"]
        },
        "runs": [{"seed": run.seed, "folder": str(run.folder)} for run in runs],
    }


def _references(results: Results) -> list[dict[str, Any]]:
    rows = []
    for fraction, part in summary.by_fraction(results).items():
        by_name: dict[str, dict[str, Any]] = {}
        for protocol in part.protocols:
            for metric in part.metrics:
                for name, value in summary.of_references(part, metric, protocol).items():
                    test = by_name.setdefault(name, {})
                    (test.setdefault(protocol, {}) if protocol else test)[metric] = _values(value)
        rows += [{"name": name, "fraction": fraction, "test": test} for name, test in by_name.items()]
    return rows


def _control(results: Results, control: Control) -> dict[str, Any]:
    """Return a row of the table of policies against a single choice."""
    return {
        "name": results.name(control.setting),
        **control.setting._asdict(),
        "metric": results.metrics[0],
        **({"protocol": results.protocols[0]} if results.protocols[0] else {}),
        "blocks": _values(control.blocks),
        "value": _values(control.value),
        "single": _values(control.single),
        "difference": control.value.mean - control.single.mean,
        **{kind: test._asdict() for kind, test in control.tests.items()},
        "runs": [run.seed for run in control.runs],
    }


def _values(value: summary.Summary) -> dict[str, Any]:
    return {"mean": value.mean, "deviation": value.deviation}


def _pairs(results: Results) -> list[dict[str, Any]]:
    return [
        {
            "one": results.name(pair.one),
            "other": results.name(pair.other),
            "metric": pair.metric,
            **({"protocol": pair.protocol} if pair.protocol else {}),
            "difference": pair.difference,
            **{kind: test._asdict() for kind, test in pair.tests.items()},
        }
        for pair in test_pairs(results)
    ]
