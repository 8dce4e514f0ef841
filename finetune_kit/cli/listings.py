"""`ftkit strategies` and `ftkit backbones`: what is installed, and the options of each."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune_kit.cli.output import print_json, stdout, table, warn

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]


def _listing(kind: str, plural: str) -> typer.Typer:
    """Return the subcommand that lists the components of one kind and shows their options."""
    app = typer.Typer(help=f"List the installed {plural}, or show the options of one.", invoke_without_command=True)

    @app.callback()
    def listing(context: typer.Context, json: Json = False) -> None:
        if context.invoked_subcommand is None:
            list_components(kind, plural, json)

    @app.command(help=f"Show what a {kind} does and every option that --set {kind}.OPTION=VALUE takes.")
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
    console = stdout()
    console.print(f"[bold]{name}[/]  {component.summary}\n")
    if not options:
        console.print("It has no options.")
        return
    shown = table("", "--set", "takes", "default", "what it is")
    for row in options:
        shown.add_row(f"{kind}.{row.name}", row.type, row.default, row.description)
    console.print(shown)


strategies = _listing("strategy", "strategies")
backbones = _listing("backbone", "backbones")
