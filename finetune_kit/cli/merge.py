"""`ftkit merge`: turn a run into a plain backbone with a head."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune_kit.cli import arguments as arg
from finetune_kit.cli.output import print_json, stdout
from finetune_kit.cli.result import dataset_of
from finetune_kit.errors import OptionError


def merge(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    data: Annotated[str | None, typer.Option(help="The run's dataset, where it was moved.")] = None,
    base: Annotated[Path | None, typer.Option(help="The run's pre-trained backbone, where it was moved.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run or backbone in --output.")] = False,
    json: arg.Json = False,
) -> None:
    """Merge a run into a plain backbone with a head, which no longer needs its base.

    Fine-tuning starts from it as from a pre-trained backbone; evaluate and recommend take it as a run.
    """
    from finetune_kit.checkpoint import read_facts
    from finetune_kit.training import merge as merging
    from finetune_kit.training.assemble import load_run

    read_facts(folder)  # says what is wrong with a folder that is no run
    arg.refuse_taken(output, overwrite=overwrite, advice="--overwrite replaces it")
    run = load_run(folder, dataset_of(folder, data, "the head would score other items"), base)
    used = [
        folder,
        run.dataset.path,
        *([] if run.facts["base"] is None else [base or folder / run.facts["base"]["path"]]),
    ]
    if output.resolve() in {path.resolve() for path in used}:
        raise OptionError(f"--output {str(output)!r} is what is merged, or belongs to it; name another folder")
    with arg.replacing(output, overwrite=overwrite):
        result = merging.merge(run, output)
    if json:
        print_json({"folder": str(output), **result})
        return
    stdout().print(
        f"merged {result['strategy']} into {output}; scores of {merging.NUM_USERS} made-up users differ by at most "
        f"{result['difference']:.1e} of the largest",
        markup=False,
    )
