"""`ftkit finetune`: start from a pre-trained backbone, or go on with a run on a dataset that has more items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune_kit.cli import arguments as arg
from finetune_kit.cli.launch import train_in_several
from finetune_kit.cli.origin import Origin
from finetune_kit.cli.result import print_result
from finetune_kit.cli.runner import is_finished, print_plan, run_folder, runner_of
from finetune_kit.errors import OptionError
from finetune_kit.processes import here


def finetune(
    from_: Annotated[
        Path, typer.Option("--from", help="Folder of a pre-trained backbone, or of a run.", show_default=False)
    ],
    strategy: Annotated[
        str | None,
        typer.Option(help="Strategy, by name; see ftkit strategies. With --data and a run, that of the run goes on."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Another dataset than that of --from, with more or other items.", show_default=False),
    ] = None,
    from_data: Annotated[
        str | None, typer.Option(help="With --data: the dataset of --from, where it was moved.", show_default=False)
    ] = None,
    task: arg.Task = None,
    seed: arg.SameSeed = None,
    output: arg.Output = None,
    epochs: arg.Epochs = None,
    batch_size: arg.BatchSize = None,
    learning_rate: arg.LearningRate = None,
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
    """Fine-tune a pre-trained backbone with another strategy, or with --data go on with a run on other items.

    Dataset, backbone and seed are those of --from. With --data, items are known again by their raw ids and keep what
    was learned of them; a run goes on with its own strategy and options.
    """
    flags = arg.flags_of(locals())
    if from_data is not None and data is None:
        raise OptionError("--from-data has no effect without --data; leave it out")
    from finetune_kit.training.assemble import refuse_other_base

    origin = Origin.read(from_, has_other_data=data is not None)
    sections = origin.completed(arg.read_sections(config, set_, flags))
    if not dry_run and train_in_several(sections):
        return
    with runner_of(sections, resume=resume, dry_run=dry_run) as runner:
        growth = origin.growth(runner, from_data)
        origin.keep_parts(runner, growth)
        base = origin.base if runner.needs_base else None
        if base is not None and growth is None:
            refuse_other_base(base, runner.config, runner.dataset)
        if dry_run:
            print_plan(runner, base if growth is None else None, json)
            return
        origin.refuse_as_output(output, runner)
        folder = run_folder(runner, output, resume=resume, overwrite=overwrite)
        runner.refuse_early()
        if not is_finished(folder, runner, resume):
            run = origin.run_that_goes_on(runner, growth)
            with arg.replacing(folder, overwrite=overwrite):
                runner.finetune(folder, *origin.start(base, growth, run, folder.parent / "pretrained"))
        if here().is_first:
            print_result(folder, json)
