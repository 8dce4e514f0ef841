"""`ftkit run`, `ftkit pretrain` and `ftkit finetune`: the commands that train."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune_kit.cli import arguments as arg
from finetune_kit.cli.output import ConsoleProgress, print_json, stdout
from finetune_kit.cli.result import print_result, read_metrics
from finetune_kit.errors import OptionError

if TYPE_CHECKING:
    from finetune_kit.training.run import Runner

Strategy = Annotated[str, typer.Option(help="Strategy, by name; see ftkit strategies.")]
From = Annotated[Path, typer.Option("--from", help="Folder of a pre-trained backbone, or of a run to take its from.")]


def run(
    strategy: Annotated[
        str | None,
        typer.Option(help="Strategy, by name; see ftkit strategies. A --config file may name it instead."),
    ] = None,
    data: arg.Data = None,
    backbone: arg.Backbone = None,
    task: arg.Task = None,
    preset: arg.Preset = None,
    seed: arg.Seed = None,
    output: arg.Output = None,
    epochs: arg.Epochs = None,
    batch_size: arg.BatchSize = None,
    learning_rate: arg.LearningRate = None,
    max_length: arg.MaxLength = None,
    device: arg.Device = None,
    precision: arg.Precision = None,
    set_: arg.Set = None,
    config: arg.ConfigFile = None,
    json: arg.Json = False,
    resume: arg.Resume = False,
    overwrite: arg.Overwrite = False,
    dry_run: arg.DryRun = False,
) -> None:
    """Pre-train (once per dataset, backbone and seed), fine-tune, measure, and write a run folder."""
    flags = {
        "strategy": strategy,
        "data": data,
        "backbone": backbone,
        "task": task,
        "preset": preset,
        "seed": seed,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "max_length": max_length,
        "device": device,
        "precision": precision,
    }
    sections = arg.read_sections(config, set_, flags)
    if "strategy" not in sections.get("run", {}):
        raise OptionError("which strategy? Add --strategy NAME; `ftkit strategies` lists them")
    with _runner(sections, resume=resume, dry_run=dry_run) as runner:
        if dry_run:
            _print_plan(runner, None, json)
            return
        folder = arg.run_folder(runner.config, runner.dataset.name, output, resume=resume, overwrite=overwrite)
        runner.refuse_early()
        if not _is_finished(folder, runner, resume):
            with arg.replacing(folder, overwrite=overwrite):
                base = runner.pretrain(folder.parent / "pretrained") if _needs_base(runner) else None
                runner.finetune(folder, base)
        print_result(folder, json)


def pretrain(
    data: arg.Data = None,
    backbone: arg.Backbone = None,
    preset: arg.Preset = None,
    seed: arg.Seed = None,
    output: Annotated[Path, typer.Option(help="Folder below which the pre-trained backbone gets its own.")] = Path(
        "runs/pretrained"
    ),
    max_length: arg.MaxLength = None,
    device: arg.Device = None,
    precision: arg.Precision = None,
    set_: arg.Set = None,
    config: arg.ConfigFile = None,
    json: arg.Json = False,
    resume: arg.Resume = False,
) -> None:
    """Pre-train a backbone on the source domain; options are --set pretrain.OPTION=VALUE."""
    flags = {
        "data": data,
        "backbone": backbone,
        "preset": preset,
        "seed": seed,
        "max_length": max_length,
        "device": device,
        "precision": precision,
    }
    sections = arg.read_sections(config, set_, flags)
    with _runner(sections, resume=resume) as runner:
        folder = runner.pretrain(output)
        metrics = read_metrics(folder)
        if json:
            print_json({"folder": str(folder), **metrics})
            return
        stdout().print(
            f"{folder}\nheld-out loss {metrics['valid_loss']:.4f} nats per item, "
            f"epoch {metrics['best_epoch']} of {metrics['epochs']}, "
            f"{metrics['total_parameters']:,} parameters, {metrics['seconds']['pretrain']:.0f} s",
            markup=False,
        )


def finetune(
    from_: From,
    strategy: Strategy,
    task: arg.Task = None,
    seed: arg.Seed = None,
    output: arg.Output = None,
    epochs: arg.Epochs = None,
    batch_size: arg.BatchSize = None,
    learning_rate: arg.LearningRate = None,
    device: arg.Device = None,
    precision: arg.Precision = None,
    set_: arg.Set = None,
    config: arg.ConfigFile = None,
    json: arg.Json = False,
    resume: arg.Resume = False,
    overwrite: arg.Overwrite = False,
    dry_run: arg.DryRun = False,
) -> None:
    """Fine-tune a pre-trained backbone with another strategy; dataset, backbone, seed are those of --from."""
    from finetune_kit.config import read_toml
    from finetune_kit.errors import CheckpointError

    if not (from_ / "config.toml").exists():
        raise CheckpointError(f"--from {str(from_)!r} is no run and no pre-trained backbone: it has no config.toml")
    flags = {
        "strategy": strategy,
        "task": task,
        "seed": seed,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "device": device,
        "precision": precision,
    }
    sections = arg.read_sections(config, set_, flags)
    origin = arg.where_it_is(read_toml(from_ / "config.toml"))
    for option, value in sections.get("pretrain", {}).items():
        if str(value) != str(origin["pretrain"].get(option)):
            raise OptionError(f"pretrain.{option} has no effect: --from is pre-trained already; see `ftkit pretrain`")
    for name in ("backbone", "pretrain", "data"):
        sections[name] = {**origin[name], **sections.get(name, {})}
    sections["run"] = {
        **{key: origin["run"][key] for key in ("data", "backbone", "seed", "preset") if key in origin["run"]},
        **sections.get("run", {}),
    }
    base = _base_of(from_)
    with _runner(sections, resume=resume, dry_run=dry_run) as runner:
        _refuse_other_data(from_, origin, runner)
        base = base if _needs_base(runner) else None
        if dry_run:
            _print_plan(runner, base, json)
            return
        if output is not None and output.resolve() in {path.resolve() for path in (from_, base) if path}:
            raise OptionError(f"--output {str(output)!r} is what --from starts from; name another folder")
        folder = arg.run_folder(runner.config, runner.dataset.name, output, resume=resume, overwrite=overwrite)
        runner.refuse_early()
        if not _is_finished(folder, runner, resume):
            with arg.replacing(folder, overwrite=overwrite):
                runner.finetune(folder, base)
        print_result(folder, json)


@contextmanager
def _runner(sections: dict[str, dict[str, Any]], *, resume: bool, dry_run: bool = False) -> Iterator[Runner]:
    """Yield what carries a configuration through; a dry run prepares datasets in a folder that vanishes."""
    from finetune_kit.config import resolve_config
    from finetune_kit.data.dataset import Dataset
    from finetune_kit.data.named import resolve_dataset
    from finetune_kit.training.device import make_fabric
    from finetune_kit.training.run import Runner

    config = resolve_config(sections)
    fabric = make_fabric(config.run.device, config.run.precision)
    with tempfile.TemporaryDirectory() as vanishing:
        path = resolve_dataset(config.run.data, dict(config.reader), Path(vanishing) if dry_run else None)
        yield Runner(config, Dataset.open(path), fabric, ConsoleProgress(), resume)


def _needs_base(runner: Runner) -> bool:
    from finetune_kit.plugins import installed

    return installed().component("strategy", runner.config.run.strategy).load().needs_pretrained


def _base_of(folder: Path) -> Path:
    """Return the pre-trained backbone that a folder is, or that a run started from.

    Raises:
        OptionError: For a run that started from none.
    """
    from finetune_kit.checkpoint import read_facts

    facts = read_facts(folder)
    if facts["kind"] == "pretrained":
        return folder
    if facts["base"] is None:
        raise OptionError(f"--from {str(folder)!r} was not pre-trained; name a pre-trained backbone or a run that was")
    return folder / facts["base"]["path"]


def _is_finished(folder: Path, runner: Runner, resume: bool) -> bool:
    """Return whether --resume finds nothing left to do.

    Raises:
        OptionError: When the folder holds a run of another configuration.
    """
    from finetune_kit.config import read_toml, to_toml

    if not resume:
        return False
    if not (folder / "config.toml").exists():
        runner.progress.say(f"warning: nothing to resume in {folder}; starting from the beginning")
        return False
    _refuse_other_data(folder, read_toml(folder / "config.toml"), runner)
    there = {name: table for name, table in read_toml(folder / "config.toml").items() if name in runner.config.tables()}
    if to_toml(there) != to_toml(runner.config.tables()):
        raise OptionError(
            f"{str(folder)!r} holds a run with other options; give those of its config.toml, or another --output"
        )
    if is_finished := (folder / "metrics.json").exists():
        runner.progress.say(f"{folder} is finished already; nothing was trained")
    return is_finished


def _refuse_other_data(folder: Path, config: dict[str, dict[str, Any]], runner: Runner) -> None:
    """Raise if a folder was made from another dataset than the runner's: its split would mix training and test."""
    was, now = config["files"]["dataset_fingerprint"], runner.dataset.fingerprint
    if was != now:
        raise OptionError(
            f"{str(folder)!r} was made from a dataset with fingerprint {was[:12]}; {str(runner.dataset.path)!r} now "
            f"has {now[:12]}; start anew in another folder"
        )


def _print_plan(runner: Runner, base: Path | None, json: bool) -> None:
    """Print the resolved options, and what would be trained."""
    from finetune_kit.config import to_toml

    strategy = runner.build_strategy(base)
    trainable, total = strategy.num_parameters()
    parts = runner.split
    trained = sorted({".".join(name.split(".")[:3]) for name in strategy.trained_state()})
    plan = {
        "config": runner.config.tables(),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "trained": trained,
        "instances": {name: len(getattr(parts, name)) for name in ("train", "valid", "test")},
    }
    if json:
        print_json(plan)
        return
    stdout().print(to_toml(plan["config"]), markup=False)
    stdout().print(f"would train {trainable:,} of {total:,} parameters: {', '.join(trained)}", markup=False)
    stdout().print("on " + ", ".join(f"{count:,} {name}" for name, count in plan["instances"].items()) + " instances")
