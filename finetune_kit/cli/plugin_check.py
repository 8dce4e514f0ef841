"""What `ftkit plugins check` finds out about a plugin without training anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from finetune_kit.component import Component
from finetune_kit.errors import PluginError, unknown_name
from finetune_kit.options import Options, describe, resolve
from finetune_kit.plugins import KINDS, Plugins


class Finding(NamedTuple):
    """One component of a plugin, and what is wrong with it; None where nothing is."""

    plugin: str
    kind: str
    component: str
    fault: str | None


def check(host: Plugins, name: str | None = None) -> list[Finding]:
    """Return one finding per component of a plugin, or of all: does it load, is it of its kind, are its options right.

    Raises:
        UnknownNameError: When no plugin has that name.
    """
    known = {plugin.name: plugin for plugin in host.loaded}
    if name is not None and name not in known:
        raise unknown_name("plugin", name, known)
    findings = [
        Finding(plugin.name, "", "", plugin.failure)
        for plugin in known.values()
        if plugin.failure and name in (None, plugin.name)
    ]
    for kind in KINDS:
        for component in host.components(kind).values():
            owner = host.owner(kind, component.name)
            if name in (None, owner):
                faults = list(_faults(kind, component))
                findings.append(Finding(owner, kind, component.name, "; ".join(faults) or None))
    return findings


def _faults(kind: str, component: Component) -> Iterator[str]:
    """Yield what is wrong with a component, one sentence each."""
    try:
        loaded = component.load()
    except PluginError as error:
        yield str(error)
        return
    base = _base(kind)
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        yield f"{component.target} is no subclass of finetune_kit.{base.__name__}"
        return
    options = getattr(loaded, "Options", Options)
    for row in describe(options):
        if not row.description:
            yield f"option {row.name!r} lacks its docstring"
    if unknown := sorted(set(component.preset) - set(options.model_fields)):
        yield f"its preset sets options that it does not have: {', '.join(unknown)}"
    elif not any(field.is_required() for field in options.model_fields.values()):
        resolve(options, component.preset, kind)


def _base(kind: str) -> type:
    """Return the class that components of a kind derive from."""
    import finetune_kit

    names = {"dataset": "DatasetReader"}
    return getattr(finetune_kit, names.get(kind, kind.capitalize()))
