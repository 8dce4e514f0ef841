"""`ftkit plugins`: list what is installed, begin a plugin, check one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from finetune_kit.cli.listings import Json
from finetune_kit.cli.output import print_json, stdout, table

app = typer.Typer(help="List the installed plugins, begin one, check one.", no_args_is_help=True)


@app.callback()
def plugins() -> None:
    """List the installed plugins, begin one, check one."""


@app.command("list")
def list_plugins(json: Json = False) -> None:
    """Show name, distribution, version, hooks and failure of every installed plugin."""
    from rich.markup import escape

    from finetune_kit.plugins import installed

    loaded = installed().loaded
    if json:
        print_json([asdict(plugin) for plugin in loaded])
        return
    shown = table("", "plugin", "distribution", "version", "hooks")
    for plugin in loaded:
        hooks = ", ".join(plugin.hooks) if not plugin.failure else f"[red]disabled:[/] {escape(plugin.failure)}"
        shown.add_row(plugin.name, plugin.distribution, plugin.version, hooks)
    stdout().print(shown)


@app.command("new")
def new_plugin(
    folder: Annotated[Path, typer.Argument(help="Folder of the new project.")],
    name: Annotated[str, typer.Option(help="Name of its strategy, e.g. my-method.")],
    json: Json = False,
) -> None:
    """Write a plugin project with a strategy that works, and its test: a place to start from."""
    from finetune_kit.cli.scaffold import write_plugin
    from finetune_kit.errors import OptionError
    from finetune_kit.plugins import installed

    if name in installed().components("strategy"):
        raise OptionError(f"a strategy named {name!r} is installed already; two of one name can't be: choose another")
    files = [str(path) for path in write_plugin(folder, name)]
    if json:
        print_json({"files": files})
        return
    for path in files:
        print(path)
    print(f"next: pip install -e {folder}; ftkit plugins check {name}; python -m pytest {folder}")


@app.command("check")
def check_plugins(
    name: Annotated[str | None, typer.Argument(help="A plugin's name; all where none is given.")] = None,
    json: Json = False,
) -> None:
    """Check that the components of a plugin load, are what they say, and have documented options."""
    from finetune_kit.cli.plugin_check import check
    from finetune_kit.errors import PluginError
    from finetune_kit.plugins import installed

    findings = check(installed(), name)
    if json:
        print_json([finding._asdict() for finding in findings])
    else:
        for plugin, kind, component, fault in findings:
            print(f"{plugin}: {kind} {component}: {fault or 'fine'}" if component else f"{plugin}: {fault}")
    if faulty := [finding for finding in findings if finding.fault]:
        raise PluginError(
            f"{len(faulty)} of {len(findings)} have a fault: {faulty[0].fault}; mend the plugin or uninstall it"
        )
