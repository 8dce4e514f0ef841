"""The closing table of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_kit.cli.output import print_json, stdout, table, warn
from finetune_kit.errors import CheckpointError

MAX_COLUMNS = 5
"""Metric columns that fit beside the names in 80 characters."""


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return ``metrics.json`` of a finished run.

    Raises:
        CheckpointError: When the run is not finished.
    """
    path = folder / "metrics.json"
    if not path.exists():
        raise CheckpointError(f"{str(folder)!r} is not finished: there is no {path.name}; go on with it by --resume")
    return json.loads(path.read_text(encoding="utf-8"))


def print_result(folder: Path, as_json: bool) -> None:
    """Print a finished run: test metrics beside the simple rankings, what its policy does, costs, folder."""
    metrics = read_metrics(folder)
    for line in warnings(metrics):
        warn(line)
    if as_json:
        print_json({"folder": str(folder), **metrics})
        return
    console = stdout()
    console.print(metrics_table(metrics))
    if "gates" in metrics:
        console.print(_gates_line(metrics["gates"]))
    seconds = metrics["seconds"]
    console.print(
        f"trained {metrics['trainable_parameters']:,} of {metrics['total_parameters']:,} parameters; best epoch "
        f"{metrics['best_epoch']} of {metrics['epochs']}; {metrics['instances_per_second']:,.0f} instances/s"
    )
    console.print(
        f"seconds: pre-training {seconds['pretrain']:.1f}, fine-tuning {seconds['finetune']:.1f}, "
        f"evaluation {seconds['evaluate']:.1f}"
    )
    console.print(str(folder), style="bold", markup=False)


def metrics_table(metrics: dict[str, Any]) -> Any:
    """Return the table of test metrics: one row per ranking protocol and ranking."""
    protocols = metrics["test"]
    names = list(next(iter(protocols.values())))
    shown = [name for name in names if name.startswith(("hr@", "mrr@", "ndcg@"))]
    first = shown[:3]
    columns = [*first, *(name for name in shown[3:] if not name.startswith("mrr@"))][:MAX_COLUMNS]
    title = f"{metrics['dataset']}, seed {metrics['seed']}: {metrics['instances']['test']:,} test instances"
    title += f", split by {metrics['protocol']}"
    made = table(title, "ranking", "protocol", *columns, right=columns)
    for protocol in protocols:
        rankings = {metrics["strategy"]: protocols, **metrics["references"]}
        for name, by_protocol in rankings.items():
            style = "bold" if name == metrics["strategy"] else None
            values = [f"{by_protocol[protocol][column]:.4f}" for column in columns]
            made.add_row(name, protocol, *values, style=style, end_section=name == list(rankings)[-1])
    return made


def warnings(metrics: dict[str, Any]) -> list[str]:
    """Return what a reader of the numbers must know: a model below popularity, a policy that treats all alike."""
    lines = []
    for protocol, values in metrics["test"].items():
        for name, by_protocol in metrics["references"].items():
            key = next(key for key in values if key.startswith("mrr@"))
            if values[key] < by_protocol[protocol][key]:
                lines.append(
                    f"{metrics['strategy']} loses to {name} under {protocol} ranking: {key} {values[key]:.4f} against "
                    f"{by_protocol[protocol][key]:.4f}"
                )
    gates = metrics.get("gates")
    if gates and gates["distinct"] == 1:
        lines.append(f"the policy treats all {gates['users']:,} users alike: gates {_numbers(gates['mean'])}")
    return lines


def _gates_line(gates: dict[str, Any]) -> str:
    text = f"mean gate per block (1 fine-tuned, 0 frozen): {_numbers(gates['mean'])}"
    if "probability" in gates:
        text += f"\nthe policy's mean probability of fine-tuning: {_numbers(gates['probability'])}"
    return f"{text}\ndifferent choices among {gates['users']:,} users: {gates['distinct']:,}"


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)
