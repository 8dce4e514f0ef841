"""`ftkit export`: write a run as a model that serves without finetune-kit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune_kit.cli import arguments as arg
from finetune_kit.cli.output import print_json, stdout
from finetune_kit.cli.result import dataset_of

if TYPE_CHECKING:
    from collections.abc import Mapping


def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    format_: Annotated[str, typer.Option("--format", help="torch-export or onnx.", show_default=False)],
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Let the model return so many of the best answers, instead of all scores."),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(min=1, help="Version of ONNX's operators; by default torch's.", show_default=False)
    ] = None,
    data: Annotated[str | None, typer.Option(help="The run's dataset, where it was moved.")] = None,
    base: Annotated[Path | None, typer.Option(help="The run's pre-trained backbone, where it was moved.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the exported run in --output.")] = False,
    json: arg.Json = False,
) -> None:
    """Write a run as one model file that serves without finetune-kit, in PyTorch's or ONNX's format.

    Beside it stand the vocabularies and a description; that the file computes what the run does is checked.
    """
    from finetune_kit.checkpoint import read_facts
    from finetune_kit.cli.narration import narrated
    from finetune_kit.exporting.formats import find_format

    found = find_format(format_, opset)
    read_facts(folder)  # says what is wrong with a folder that is no run

    from finetune_kit.exporting import export as exporting
    from finetune_kit.training.assemble import load_run

    exporting.refuse_taken(output, overwrite=overwrite)
    run = load_run(folder, dataset_of(folder, data, "its ids would mean other users and items"), base)
    with narrated("finetune_kit.exporting"):
        signature = exporting.export(run, output, found, top=top, opset=opset, overwrite=overwrite)
    if json:
        print_json({"folder": str(output), **signature})
        return
    stdout().print(_told(output, signature), markup=False)


def _told(output: Path, signature: Mapping[str, Any]) -> str:
    """Return what was written, and how near it is to the run."""
    size = sum(path.stat().st_size for path in output.iterdir()) / 1e6
    compared = signature["compared"]
    said = [
        f"wrote {output / signature['file']} and its vocabularies, {size:,.1f} MB: {_shapes(signature['inputs'])} → "
        f"{_shapes(signature['outputs'])}",
        f"outputs for {compared['num_users']} users differ from the run's by at most {compared['largest']:.1e} of the "
        "largest",
    ]
    if compared["num_otherwise"]:
        said.append(f"{compared['num_otherwise']} at the edge of two branches took the other one")
    return "; ".join(said)


def _shapes(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({', '.join(map(str, value['shape']))})" for name, value in values.items())
