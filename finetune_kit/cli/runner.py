"""What the commands that train share: from a configuration to a runner, its plan, and what is there already."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_kit.cli import arguments as arg
from finetune_kit.cli.output import ConsoleProgress, print_json, stdout
from finetune_kit.errors import OptionError
from finetune_kit.progress import Progress

if TYPE_CHECKING:
    from finetune_kit.training.run import Runner


@contextmanager
def runner_of(sections: dict[str, dict[str, Any]], *, resume: bool, dry_run: bool = False) -> Iterator[Runner]:
    """Yield what carries a configuration through; a dry run prepares datasets in a folder that vanishes.

    In a job of several processes it is one of them, and the first alone is heard.
    """
    from finetune_kit.config import resolve_config
    from finetune_kit.data.dataset import Dataset
    from finetune_kit.data.named import resolve_dataset
    from finetune_kit.processes import here, leave, started_job
    from finetune_kit.training.device import make_fabric
    from finetune_kit.training.run import Runner

    config, job = resolve_config(sections), started_job()
    if job is not None and config.run.devices not in (1, job.per_machine):
        raise OptionError(
            f"run.devices = {config.run.devices}, but this was started as {job.per_machine} processes a machine; "
            "leave --devices out where torchrun or srun starts them"
        )
    fabric = make_fabric(config.run.device, config.run.precision, job, divided=config.run.tables == "divided")
    with tempfile.TemporaryDirectory() as vanishing:
        cache = Path(vanishing) if dry_run else None
        path = here().alone(lambda: resolve_dataset(config.run.data, dict(config.reader), cache))
        progress = ConsoleProgress() if here().is_first else Progress()
        yield Runner(config, Dataset.open(path), fabric, progress, resume)
        leave()


def run_folder(runner: Runner, output: Path | None, *, resume: bool, overwrite: bool) -> Path:
    """Return the folder that a run writes to, as `arguments.run_folder` says; the first process chooses."""
    from finetune_kit.processes import here

    config, name = runner.config, runner.dataset.name
    return here().alone(lambda: arg.run_folder(config, name, output, resume=resume, overwrite=overwrite))


def is_finished(folder: Path, runner: Runner, resume: bool) -> bool:
    """Return whether --resume finds nothing left to do.

    Raises:
        OptionError: When the folder holds a run of another configuration; every difference is named.
        CheckpointError: When a file of a finished run was changed.
    """
    from finetune_kit.processes import here

    return resume and here().alone(lambda: _is_finished(folder, runner))


def _is_finished(folder: Path, runner: Runner) -> bool:
    from finetune_kit.checksums import refuse_changed
    from finetune_kit.config import deciding_options, differences, read_run

    if not (folder / "config.toml").exists():
        runner.progress.say(f"warning: nothing to resume in {folder}; starting from the beginning")
        return False
    sections = read_run(folder)
    refuse_other_data(folder, sections, runner)
    if told := differences(deciding_options(sections), deciding_options(runner.config.tables())):
        raise OptionError(
            f"{str(folder)!r} holds a run with other options: {told}; give those of its config.toml, or another "
            "--output"
        )
    if done := (folder / "metrics.json").exists():
        refuse_changed(folder, "copy the folder again, or train anew with --overwrite")
        runner.progress.say(f"{folder} is finished already; nothing was trained")
    return done


def refuse_other_pretraining(root: Path, folder: Path, runner: Runner) -> None:
    """Raise if --resume finds no pre-training under these options, but an interrupted one under others.

    Args:
        root: Where pre-trained backbones stand.
        folder: Where the one asked for would stand.
        runner: What would make it.
    """
    from finetune_kit.config import deciding_options, differences, read_run
    from finetune_kit.training.folders import BASE_SECTIONS

    if folder.exists():
        return
    run = ("run.backbone", "run.seed", "run.precision", "run.compile", "run.deterministic")

    def own(sections: Mapping[str, Any]) -> dict[str, Any]:
        options = deciding_options({name: sections[name] for name in BASE_SECTIONS})
        return {path: value for path, value in options.items() if not path.startswith("run.") or path in run}

    for other in sorted(root.glob(f"{folder.name.rpartition('-')[0]}-*")):
        if (other / "last").is_dir() and not (other / "metrics.json").exists():
            sections = read_run(other, BASE_SECTIONS)
            was = {"dataset": sections["files"]["dataset_fingerprint"], **own(sections)}
            now = {"dataset": runner.dataset.fingerprint, **own(runner.config.tables())}
            if told := differences(was, now):
                raise OptionError(
                    f"nothing to resume: what was interrupted, {str(other)!r}, has other options: {told}; "
                    "give those, or leave --resume out"
                )
    runner.progress.say(f"warning: nothing to resume in {folder}; starting from the beginning")


def refuse_other_data(folder: Path, config: dict[str, dict[str, Any]], runner: Runner) -> None:
    """Raise if a folder was made from another dataset than the runner's: its split would mix training and test."""
    was, now = config["files"]["dataset_fingerprint"], runner.dataset.fingerprint
    if was != now:
        raise OptionError(
            f"{str(folder)!r} was made from a dataset with fingerprint {was[:12]}; {str(runner.dataset.path)!r} now "
            f"has {now[:12]}; start anew in another folder"
        )


def print_plan(runner: Runner, base: Path | None, json: bool) -> None:
    """Print the resolved options, and what would be trained."""
    from finetune_kit.config import to_toml
    from finetune_kit.data.earlier import PARTS

    strategy = runner.build_strategy(base)
    trainable, total = strategy.num_parameters()
    parts = runner.split
    trained = sorted({".".join(name.split(".")[:3]) for name in strategy.trained_state()})
    plan = {
        "config": runner.config.tables(),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "trained": trained,
        "instances": {name: len(getattr(parts, name)) for name in PARTS},
    }
    if json:
        print_json(plan)
        return
    stdout().print(to_toml(plan["config"]), markup=False)
    stdout().print(f"would train {trainable:,} of {total:,} parameters: {', '.join(trained)}", markup=False)
    stdout().print("on " + ", ".join(f"{count:,} {name}" for name, count in plan["instances"].items()) + " instances")
