"""`ftkit plugins`: which plugins are installed, what they offer, and why one is disabled."""

from __future__ import annotations

from dataclasses import asdict

import typer

from finetune_kit.cli.listings import Json
from finetune_kit.cli.output import print_json, stdout, table

app = typer.Typer(help="List the installed plugins.", no_args_is_help=True)


@app.callback()
def plugins() -> None:
    """List the installed plugins."""


@app.command("list")
def list_plugins(json: Json = False) -> None:
    """Show name, distribution, version, hooks and failure of every installed plugin."""
    from finetune_kit.plugins import installed

    loaded = installed().loaded
    if json:
        print_json([asdict(plugin) for plugin in loaded])
        return
    shown = table("", "plugin", "distribution", "version", "hooks")
    for plugin in loaded:
        hooks = ", ".join(plugin.hooks) if not plugin.failure else f"[red]disabled:[/] {plugin.failure}"
        shown.add_row(plugin.name, plugin.distribution, plugin.version, hooks)
    stdout().print(shown)
