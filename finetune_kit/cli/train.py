"""`ftkit run` and `ftkit pretrain`: the commands that start from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune_kit.cli import arguments as arg
from finetune_kit.cli.launch import train_in_several
from finetune_kit.cli.output import print_json, stdout
from finetune_kit.cli.result import print_result
from finetune_kit.cli.runner import is_finished, print_plan, refuse_other_pretraining, run_folder, runner_of
from finetune_kit.errors import OptionError
from finetune_kit.files import read_metrics
from finetune_kit.processes import here


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
    devices: arg.Devices = None,
    precision: arg.Precision = None,
    compile: arg.Compile = None,
    deterministic: arg.Deterministic = None,
    set_: arg.Set = None,
    config: arg.ConfigFile = None,
    json: arg.Json = False,
    resume: arg.Resume = False,
    overwrite: arg.Overwrite = False,
    dry_run: arg.DryRun = False,
) -> None:
    """Pre-train (once per dataset, backbone and seed), fine-tune, measure, and write a run folder."""
    flags = arg.flags_of(locals())
    sections = arg.read_sections(config, set_, flags)
    if "strategy" not in sections.get("run", {}):
        raise OptionError("which strategy? Add --strategy NAME; `ftkit strategies` lists them")
    if not dry_run and train_in_several(sections):
        return
    with runner_of(sections, resume=resume, dry_run=dry_run) as runner:
        if dry_run:
            print_plan(runner, None, json)
            return
        folder = run_folder(runner, output, resume=resume, overwrite=overwrite)
        runner.refuse_early()
        if not is_finished(folder, runner, resume):
            with arg.replacing(folder, overwrite=overwrite):
                base = runner.pretrain(folder.parent / "pretrained") if runner.needs_base else None
                runner.finetune(folder, base)
        if here().is_first:
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
    devices: arg.Devices = None,
    precision: arg.Precision = None,
    compile: arg.Compile = None,
    deterministic: arg.Deterministic = None,
    set_: arg.Set = None,
    config: arg.ConfigFile = None,
    json: arg.Json = False,
    resume: arg.Resume = False,
) -> None:
    """Pre-train a backbone on the source domain; options are --set pretrain.OPTION=VALUE."""
    flags = arg.flags_of(locals())
    sections = arg.read_sections(config, set_, flags)
    if train_in_several(sections):
        return
    with runner_of(sections, resume=resume) as runner:
        if resume:
            here().alone(lambda: refuse_other_pretraining(output, runner.pretrained_folder(output), runner))
        folder = runner.pretrain(output)
        if not here().is_first:
            return
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
