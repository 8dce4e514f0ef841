"""`ftkit plugins`: list what is installed, begin a plugin, check one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_kit.cli.listings import Json
from finetune_kit.cli.output import ConsoleProgress, print_json, stdout, table, warn

if TYPE_CHECKING:
    from finetune_kit.cli.plugin_check import Finding
    from finetune_kit.component import Component
    from finetune_kit.plugins import Loaded

app = typer.Typer(help="List the installed plugins, begin one, check one.", no_args_is_help=True)


@app.callback()
def plugins() -> None:
    """List the installed plugins, begin one, check one."""


@app.command("list")
def list_plugins(json: Json = False) -> None:
    """Show name, distribution, version, hooks, file and failure of every installed plugin."""
    from finetune_kit.plugins import installed

    plugins = [*installed().loaded, *installed().left_out]
    if json:
        print_json([asdict(plugin) for plugin in plugins])
        return
    shown = table("", "plugin", "distribution", "version", "hooks", "file")
    for plugin in plugins:
        shown.add_row(plugin.name, plugin.distribution, plugin.version, _hooks_or_why_none(plugin), plugin.file)
    stdout().print(shown)


def _hooks_or_why_none(plugin: Loaded) -> str:
    if plugin.is_left_out:
        return "left out, not imported"
    return f"disabled: {plugin.failure}" if plugin.failure else ", ".join(plugin.hooks)


@app.command("new")
def new_plugin(
    name: Annotated[str, typer.Argument(help="Name of what it adds, e.g. my-method.", show_default=False)],
    kind: Annotated[str, typer.Option(help="What it adds: strategy, backbone, policy or dataset.")] = "strategy",
    output: Annotated[
        Path | None, typer.Option(help="Folder of the new project; ftkit-NAME if left out.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Write a plugin project that works, with its tests: a place to start from."""
    from finetune_kit.cli.scaffold import refuse_name, write_plugin
    from finetune_kit.plugins import installed

    refuse_name(installed(), kind, name)
    folder = output or Path(f"ftkit-{name}")
    files = [str(path) for path in write_plugin(folder, name, kind)]
    if json:
        print_json({"files": files})
        return
    for path in files:
        print(path)
    print(f"next: pip install -e {folder}; ftkit plugins check {name}; python -m pytest {folder}")


@app.command("check")
def check_plugins(
    name: Annotated[str | None, typer.Argument(help="A plugin's name; all where none is given.")] = None,
    seconds: Annotated[float, typer.Option(help="How long one promise may take.", min=1)] = 60,
    json: Json = False,
) -> None:
    """Try every promise that a plugin's components make; exit with 2 if one is broken.

    Needs pytest and hypothesis. Without them it says so, and checks that components load and have documented options.
    """
    from finetune_kit.cli.plugin_check import check, components_of
    from finetune_kit.errors import PluginError
    from finetune_kit.plugins import installed

    findings = check(installed(), name, seconds)
    sound = {(one.kind, one.component) for one in findings if one.state == "kept"}
    chosen = [one for one in components_of(installed(), name) if (one[1], one[2].name) in sound]
    findings = _in_order([*findings, *_try_promises(chosen, seconds)])
    if json:
        print_json([finding._asdict() for finding in findings])
    else:
        _print_findings(findings)
    if broken := [finding for finding in findings if finding.state == "broken"]:
        raise PluginError(
            f"{len(broken)} of {len(findings)} promises broken, the first by {broken[0].kind} {broken[0].component}: "
            f"{broken[0].reason}; mend the plugin or uninstall it"
        )


def _try_promises(chosen: list[tuple[str, str, Component]], seconds: float) -> list[Finding]:
    """Return the findings of the contracts; none, after a warning, where pytest or hypothesis is missing."""
    from importlib.util import find_spec

    if missing := [module for module in ("pytest", "hypothesis") if find_spec(module) is None]:
        warn(f"no contract was tried: {' and '.join(missing)} missing; pip install 'finetune-kit[testing]'")
        return []
    from finetune_kit.cli.promises import try_promises

    with ConsoleProgress().stage("checking", 100) as advance:
        return try_promises(chosen, seconds, lambda percent: advance(percent, ""))


def _in_order(findings: list[Finding]) -> list[Finding]:
    """Return findings by component, in the order in which components were met."""
    places = {component: place for place, component in enumerate(dict.fromkeys(one[:3] for one in findings))}
    return sorted(findings, key=lambda one: places[one[:3]])


COLOURS = {"kept": "green", "broken": "red", "not checked": "yellow"}


def _print_findings(findings: list[Finding]) -> None:
    """Print a table per component, and how many promises were kept."""
    from itertools import groupby

    from rich.text import Text

    for (plugin, kind, component), promises in groupby(findings, key=lambda one: one[:3]):
        shown = table(
            f"{kind} {component}" if kind == "plugin" else f"{kind} {component}, of plugin {plugin}", "", "promise"
        )
        for one in promises:
            reason = Text(f"\n{one.reason}" if one.reason else "", "dim")
            shown.add_row(Text(one.state, COLOURS[one.state]), Text(one.promise).append_text(reason))
        stdout().print(shown)
    counts = {state: sum(one.state == state for one in findings) for state in COLOURS}
    print(", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "kept"))
