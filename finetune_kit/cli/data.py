"""`ftkit data`: prepare a dataset folder from raw files, and say what is in one."""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_kit.cli.output import print_json
from finetune_kit.component import Component
from finetune_kit.data.remote import is_address, without_secrets
from finetune_kit.errors import OptionError, did_you_mean
from finetune_kit.foreign import visible
from finetune_kit.plugins import installed

if TYPE_CHECKING:
    from finetune_kit.data.reader import DatasetReader

app = typer.Typer(help="Prepare datasets and look into them.", no_args_is_help=True)

OWN = {
    "output": "The dataset folder to make.",
    "overwrite": "Replace the dataset that is there.",
    "json": "Print the result as JSON on stdout, and nothing else there.",
    "help": "Show this.",
}
"""Options of `prepare` itself."""
FLAGS = ("overwrite", "json", "help")


@dataclass
class Words:
    """A command line taken apart: words without a name, and options by name, dashes as underscores."""

    plain: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def prepare(context: typer.Context) -> None:
    """Prepare a dataset folder: NAME [FILE] [--option value …] --output DIR."""
    arguments = list(context.args)
    if not arguments or arguments[0].startswith("--"):
        _print_readers()
        return
    component = installed().component("dataset", arguments.pop(0))
    reader = component.load()
    words = parse_words(arguments, _flags(reader))
    if "help" in words.options:
        _print_options(component, reader)
        return
    own = _check(words, reader, component.name)
    output = Path(own["output"])
    from finetune_kit.cli.narration import narrated  # rich: --help needs none

    with narrated("finetune_kit.data"):
        _prepare(component, words.options, output, "overwrite" in own)
    _report(output, "json" in own)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A dataset folder.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")] = False,
) -> None:
    """Say what is in a dataset, and what was left out when it was prepared."""
    from finetune_kit.cli.data_tables import print_facts
    from finetune_kit.data.dataset import Dataset
    from finetune_kit.data.inspect import inspect as facts_of

    facts = facts_of(Dataset.open(folder))
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)


def parse_words(arguments: list[str], flags: Collection[str]) -> Words:
    """Return a command line taken apart.

    Args:
        arguments: The words, e.g. ``["log.csv", "--max-target", "5"]``; after ``--`` none has a name.
        flags: Options that need no value: alone they mean ``true``.

    Raises:
        OptionError: For an option without its value, or given twice.
    """
    words, left = Words(), list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            words.plain += left
            break
        if not word.startswith("--"):
            words.plain.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if name in words.options:
            raise OptionError(f"--{name.replace('_', '-')} is given twice; keep one")
        if not equals and name in flags:
            value = left.pop(0) if left and left[0] in ("true", "false") and name not in FLAGS else "true"
        elif not equals:
            if not left or left[0].startswith("--"):
                raise OptionError(f"--{name.replace('_', '-')} lacks its value")
            value = left.pop(0)
        words.options[name] = value
    return words


def _flags(reader: type[DatasetReader]) -> set[str]:
    """Return the options that need no value: those of `prepare`, and the reader's that are true or false."""
    return {*FLAGS, *(name for name, one in reader.Options.model_fields.items() if one.annotation is bool)}


def _check(words: Words, reader: type[DatasetReader], name: str) -> dict[str, str]:
    """Name the positional word, refuse unknown options; take `prepare`'s own out and return them.

    Raises:
        OptionError: For a word too many, an option that does not exist, or no ``--output``.
    """
    if words.plain and reader.positional and reader.positional not in words.options:
        words.options[reader.positional] = words.plain.pop(0)
    if words.plain:
        raise OptionError(f"{words.plain[0]!r} is one word too many; see `ftkit data prepare {name} --help`")
    known = [*reader.Options.model_fields, *OWN]
    for option in words.options:
        if option not in known:
            dashed = [f"--{one.replace('_', '-')}" for one in known]
            typed = f"--{option.replace('_', '-')}"
            raise OptionError(f"no option {typed}.{did_you_mean(typed, dashed)} Options: {', '.join(dashed)}")
    own = {option: words.options.pop(option) for option in OWN if option in words.options}
    if "output" not in own:
        raise OptionError(f"where to? Add --output DIR to ftkit data prepare {name}")
    if is_address(own["output"]):
        raise OptionError(
            f"--output {without_secrets(own['output'])!r}: a dataset is memory-mapped, so it is a folder of this "
            "machine; give one, and copy it afterwards"
        )
    return own


def _prepare(component: Component, options: dict[str, str], output: Path, overwrite: bool) -> None:
    from finetune_kit.data.folder import new_folder
    from finetune_kit.data.named import make_reader

    reader = make_reader(component, options)
    with new_folder(output, overwrite) as folder:
        reader.prepare(folder)


def _report(output: Path, as_json: bool) -> None:
    """Print what was prepared: one line, or everything as JSON."""
    from finetune_kit.data.dataset import Dataset
    from finetune_kit.data.inspect import inspect as facts_of

    facts = facts_of(Dataset.open(output))
    if as_json:
        print_json(facts)
        return
    typer.echo(
        f"prepared {visible(str(output))}: {facts['users']:,} users, "
        f"{facts['source']['events']:,} source events of {facts['source']['items']:,} items, "
        f"{facts['target']['events']:,} target events of {facts['target']['items']:,} items"
    )


def _print_readers() -> None:
    typer.echo("Usage: ftkit data prepare NAME [FILE] [--option value …] --output DIR [--overwrite] [--json]\n")
    typer.echo("What can be prepared (options: ftkit data prepare NAME --help):\n")
    for name, component in installed().components("dataset").items():
        typer.echo(f"  {name:<12} {component.summary}")


def _print_options(component: Component, reader: type[DatasetReader]) -> None:
    from finetune_kit.options import describe  # pydantic takes a fifth of a second to import: --help needs none

    positional = f" [{reader.positional.upper()}]" if reader.positional else ""
    typer.echo(f"Usage: ftkit data prepare {component.name}{positional} [--option value …] --output DIR\n")
    typer.echo(f"{component.summary}\n")
    for row in describe(reader.Options, component.preset):
        typer.echo(f"  --{row.name.replace('_', '-')}  {row.type}, default {row.default}")
        typer.echo(textwrap.fill(row.description, 76, initial_indent="      ", subsequent_indent="      "))
    for name, text in OWN.items():
        typer.echo(f"  --{name}\n      {text}")
