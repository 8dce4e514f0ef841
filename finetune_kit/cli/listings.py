"""`ftkit strategies`, `ftkit backbones` and `ftkit policies`: what is installed, and the options of each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_kit.cli.output import print_json, stdout, table, warn

if TYPE_CHECKING:
    from finetune_kit.options import Described

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]

WIDTH = 80
"""Columns that options are printed in, whatever the terminal: what the documents show is what is printed."""
SETS = {"strategy": "strategy", "backbone": "backbone", "policy": "strategy.policy_options"}
"""Kind of component to what stands before its options in ``--set``."""


def _listing(kind: str, plural: str) -> typer.Typer:
    """Return the subcommand that lists the components of one kind and shows their options."""
    app = typer.Typer(help=f"List the installed {plural}, or show the options of one.", invoke_without_command=True)

    @app.callback()
    def listing(context: typer.Context, json: Json = False) -> None:
        if context.invoked_subcommand is None:
            list_components(kind, plural, json)

    @app.command(help=f"Show what a {kind} does and every option that --set {SETS[kind]}.OPTION=VALUE takes.")
    def show(name: Annotated[str, typer.Argument(help="Its name.")], json: Json = False) -> None:
        show_component(kind, name, json)

    return app


def list_components(kind: str, plural: str, json: bool) -> None:
    """Print name, summary and plugin of the installed components of one kind."""
    from finetune_kit.plugins import installed

    host = installed()
    rows = [(name, component.summary, host.owner(kind, name)) for name, component in host.components(kind).items()]
    for failed in host.failures:
        warn(f"plugin {failed.name!r} ({failed.module}) is disabled: {failed.failure}")
    if json:
        print_json([{"name": name, "summary": summary, "plugin": owner} for name, summary, owner in rows])
        return
    shown = table("", kind, "what it does", "plugin")
    for row in rows:
        shown.add_row(*row)
    stdout().print(shown)


def show_component(kind: str, name: str, json: bool) -> None:
    """Print a component's summary and its options."""
    from finetune_kit.options import describe
    from finetune_kit.plugins import installed

    component = installed().component(kind, name)
    options = describe(component.load().Options, component.preset)
    if json:
        print_json({"name": name, "summary": component.summary, "options": [row._asdict() for row in options]})
        return
    print_options(f"{name}: {component.summary}", SETS[kind], options)


def print_options(title: str, section: str, options: Sequence[Described]) -> None:
    """Print options, one block each: the path for ``--set``, what it takes, its default; below, what it is.

    Args:
        title: Printed first.
        section: What stands before the options' names, e.g. ``"strategy"``.
        options: What `finetune_kit.options.describe` returned.
    """
    print(textwrap.fill(title, WIDTH))
    if not options:
        print("\nIt has no options.")
    for row in options:
        print(f"\n{_headline(f'{section}.{row.name}', row)}")
        print(textwrap.fill(row.description, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))


def _headline(path: str, row: Described) -> str:
    """Return path, type and default on one line, or on three where that is too long; none is folded."""
    parts = (path, row.type, row.default if row.default == "(required)" else f"default {row.default}")
    line = "  " + "   ".join(parts)
    return line if len(line) <= WIDTH else f"  {parts[0]}\n    {parts[1]}\n    {parts[2]}"


strategies = _listing("strategy", "strategies")
backbones = _listing("backbone", "backbones")
policies = _listing("policy", "policies")
