"""The closing table of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_kit.cli.output import print_json, stdout, table, warn
from finetune_kit.errors import CheckpointError, one_line
from finetune_kit.files import read_metrics

if TYPE_CHECKING:
    from finetune_kit.data.dataset import Dataset

MAX_COLUMNS = 5
"""Metric columns that fit beside the names in 80 characters."""


def dataset_of(folder: Path, data: str | None, otherwise: str, option: str = "--data") -> Dataset:
    """Return the dataset that a run was trained on.

    Args:
        folder: Run folder.
        data: Where the dataset was moved; None takes the place that the run remembers.
        otherwise: What would happen with another dataset; stands in the error.
        option: The option by which ``data`` is given.

    Raises:
        CheckpointError: When the dataset is not there any more, or another.
    """
    from finetune_kit.config import read_run
    from finetune_kit.data.dataset import Dataset
    from finetune_kit.data.folder import read_manifest
    from finetune_kit.data.named import resolve_dataset

    files = read_run(folder)["files"]
    path = resolve_dataset(data, {}) if data else Path(files["dataset"])
    if not path.is_dir():
        raise CheckpointError(
            f"the dataset of {str(folder)!r} is no longer at {str(path)!r}; say with {option} where it is"
        )
    dataset = Dataset(path, read_manifest(path))  # not opened yet: opening may write arrays into its folder
    if dataset.fingerprint != (was := files["dataset_fingerprint"]):
        raise CheckpointError(
            f"{str(folder)!r} was trained on the dataset with fingerprint {was[:12]}, {str(path)!r} has "
            f"{dataset.fingerprint[:12]}; {otherwise}"
        )
    return Dataset.open(path)


def print_result(folder: Path, as_json: bool) -> None:
    """Print a finished run: test metrics beside the simple rankings, what its policy does, costs, folder."""
    metrics = read_metrics(folder)
    try:
        _print_metrics(metrics, folder, as_json)
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        StopIteration,
    ) as error:  # edited, or cut and mended
        reason = one_line(error, with_type=True)
        path = folder / "metrics.json"
        raise CheckpointError(f"{path} is damaged ({reason}); copy or make the folder again") from error


def _print_metrics(metrics: dict[str, Any], folder: Path, as_json: bool) -> None:
    for line in warnings(metrics):
        warn(line)
    if as_json:
        print_json({"folder": str(folder), **metrics})
        return
    console = stdout()
    console.print(metrics_table(metrics))
    if "classes" in metrics:
        shares = ", ".join(f"{name} {shares['test']:.1%}" for name, shares in metrics["classes"].items())
        console.print(f"classes among the test instances: {shares}", markup=False)
    if "gates" in metrics:
        console.print(gates_text(metrics["gates"]))
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
    """Return the table of test metrics: one row per ranking protocol and ranking, or for a label one per predictor."""
    return _label_table(metrics) if "classes" in metrics else _ranking_table(metrics)


def _ranking_table(metrics: dict[str, Any]) -> Any:
    protocols = metrics["test"]
    names = list(next(iter(protocols.values())))
    shown = [name for name in names if name.startswith(("hr@", "mrr@", "ndcg@"))]
    first = shown[:3]
    columns = [*first, *(name for name in shown[3:] if not name.startswith("mrr@"))][:MAX_COLUMNS]
    made = table(_title(metrics), "ranking", "protocol", *columns, right=columns)
    for protocol in protocols:
        rankings = {metrics["strategy"]: protocols, **metrics["references"]}
        for name, by_protocol in rankings.items():
            style = "bold" if name == metrics["strategy"] else None
            values = [f"{by_protocol[protocol][column]:.4f}" for column in columns]
            made.add_row(name, protocol, *values, style=style, end_section=name == list(rankings)[-1])
    return made


def _label_table(metrics: dict[str, Any]) -> Any:
    names = list(metrics["test"])
    made = table(f"{metrics['task']}, {_title(metrics)}", "predictor", *names, right=names)
    predictors = {metrics["strategy"]: metrics["test"], **metrics["references"]}
    for name, values in predictors.items():
        style = "bold" if name == metrics["strategy"] else None
        made.add_row(name, *(f"{values[column]:.4f}" for column in names), style=style)
    return made


def _title(metrics: dict[str, Any]) -> str:
    instances = f"{metrics['instances']['test']:,} test instances, split by {metrics['protocol']}"
    return f"{metrics['dataset']}, seed {metrics['seed']}: {instances}"


def warnings(metrics: dict[str, Any]) -> list[str]:
    """Return what a reader of the numbers must know: a model below popularity, a policy that treats all alike."""
    lines = []
    for where, key, value, reference, other in _against_references(metrics):
        if value < other:
            lines.append(f"{metrics['strategy']} loses to {reference}{where}: {key} {value:.4f} against {other:.4f}")
    lines += metrics.get("remarks", [])
    gates = metrics.get("gates")
    if gates and gates["is_collapsed"]:
        lines.append(
            f"the policy hardly tells users apart: {gates['commonest']:.1%} of {gates['users']:,} users take the same "
            f"choice; mean gates {_numbers(gates['mean'])}, their deviation over users {_numbers(gates['deviation'])}"
        )
    return lines


def _against_references(metrics: dict[str, Any]) -> Iterator[tuple[str, str, float, str, float]]:
    """Yield where it was measured, the metric, the strategy's value, a reference's name and its value."""
    for name, values in metrics["references"].items():
        if "classes" in metrics:
            yield "", "accuracy", metrics["test"]["accuracy"], name, values["accuracy"]
            continue
        for protocol, ours in metrics["test"].items():
            key = next(key for key in ours if key.startswith("mrr@"))
            yield f" under {protocol} ranking", key, ours[key], name, values[protocol][key]


def gates_text(gates: dict[str, Any]) -> str:
    """Return what the policy does, in lines."""
    shut = "frozen or skipped" if "skipped" in gates else "frozen"
    text = f"mean gate per block (1 fine-tuned, 0 {shut}): {_numbers(gates['mean'])}"
    if "probability" in gates:
        text += f"\nthe policy's mean probability of fine-tuning: {_numbers(gates['probability'])}"
    if "skipped" in gates:
        num_blocks, num_skipped = len(gates["skipped"]), sum(gates["skipped"])
        text += f"\nshare of users who skip a block: {_numbers(gates['skipped'])}"
        text += f"\nblocks computed per user: {num_blocks - num_skipped:.2f} of {num_blocks}"
    return f"{text}\ndifferent choices among {gates['users']:,} users: {gates['distinct']:,}"


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)
