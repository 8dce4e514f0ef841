"""`ftkit evaluate`: measure a finished run again, on the split that it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from finetune_kit.cli import arguments as arg
from finetune_kit.cli.output import ConsoleProgress, print_json, stdout
from finetune_kit.cli.result import metrics_table, read_metrics, warnings
from finetune_kit.errors import OptionError


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    protocol: Annotated[str | None, typer.Option(help="Ranking protocols: full, sampled or both.")] = None,
    data: Annotated[str | None, typer.Option(help="The run's dataset, where it was moved.")] = None,
    base: Annotated[Path | None, typer.Option(help="The run's pre-trained backbone, where it was moved.")] = None,
    device: arg.Device = None,
    precision: arg.Precision = None,
    set_: arg.Set = None,
    json: arg.Json = False,
) -> None:
    """Measure a finished run again, with other protocols or cut-offs (--set evaluation.cutoffs=1,5); writes nothing."""
    from finetune_kit.checkpoint import read_facts
    from finetune_kit.cli.output import warn
    from finetune_kit.config import read_toml, resolve_config
    from finetune_kit.data.dataset import Dataset
    from finetune_kit.data.named import resolve_dataset
    from finetune_kit.errors import CheckpointError
    from finetune_kit.training.assemble import load_run
    from finetune_kit.training.device import make_fabric
    from finetune_kit.training.measure import measure
    from finetune_kit.training.run import Runner

    read_facts(folder)  # says what is wrong with a folder that is no run
    sections = read_toml(folder / "config.toml")
    path = resolve_dataset(data, {}) if data else Path(sections["files"]["dataset"])
    if not path.is_dir():
        raise CheckpointError(
            f"the dataset of {str(folder)!r} is no longer at {str(path)!r}; say with --data where it is"
        )
    for name, options in arg.read_sections(None, set_, {"device": device, "precision": precision}).items():
        _refuse_what_trained(name, options)
        sections[name] = {**sections.get(name, {}), **options}
    if protocol:
        sections["evaluation"] = {**sections["evaluation"], "protocols": protocol}
    config = resolve_config(sections)
    dataset = Dataset.open(path)
    if dataset.fingerprint != (was := sections["files"]["dataset_fingerprint"]):
        raise CheckpointError(
            f"{str(folder)!r} was trained on the dataset with fingerprint {was[:12]}, {str(path)!r} has "
            f"{dataset.fingerprint[:12]}; on another dataset training and test instances would mix"
        )
    run = load_run(folder, dataset, base)
    runner = Runner(config, dataset, make_fabric(config.run.device, config.run.precision), ConsoleProgress())
    runner.fabric.to_device(run.strategy)
    metrics = {**read_metrics(folder), **measure(runner, run.strategy).metrics}
    for line in warnings(metrics):
        warn(line)
    if json:
        print_json({"folder": str(folder), **metrics})
    else:
        stdout().print(metrics_table(metrics))


def _refuse_what_trained(section: str, options: Mapping[str, object]) -> None:
    """Refuse options that decided the training: with another seed or split, the test would hold what was trained on."""
    for option in options:
        if section != "evaluation" and (section, option) not in {("run", "device"), ("run", "precision")}:
            raise OptionError(
                f"{section}.{option} decided the run's training; evaluate takes evaluation.*, --device and --precision"
            )
