"""What `ftkit plugins check` finds out about a plugin before it tries any contract, and how it tells all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from finetune_kit.cli.time_limit import time_limit
from finetune_kit.component import Component
from finetune_kit.errors import OptionError, PluginError, unknown_name
from finetune_kit.options import Options, describe, resolve
from finetune_kit.plugins import KINDS, Plugins
from finetune_kit.presets import PRESETS

State = Literal["kept", "broken", "not checked"]
LOADS = "It loads, is of its kind, and each of its options has a docstring"
OFFERS = "The plugin is imported, and offers what its hooks say"


class Finding(NamedTuple):
    """One promise of a component of a plugin: was it kept, and if not, why; ``kind`` is "plugin" for its hooks."""

    plugin: str
    kind: str
    component: str
    promise: str
    state: State
    reason: str | None = None


def check(host: Plugins, name: str | None = None, seconds: float = 60) -> list[Finding]:
    """Return whether the components of a plugin, or of all, load, are of their kind, and have documented options.

    Args:
        host: The plugins.
        name: A plugin's name; None takes all.
        seconds: How long loading a component may take.

    Raises:
        UnknownNameError: When no plugin has that name.
    """
    known = {plugin.name: plugin for plugin in host.loaded}
    if name is not None and name not in known:
        raise unknown_name("plugin", name, known)
    findings = [
        Finding(plugin.name, "plugin", plugin.name, OFFERS, *_state(plugin.failure))
        for plugin in known.values()
        if name == plugin.name or (name is None and plugin.failure)
    ]
    for owner, kind, component in components_of(host, name):
        faults = "; ".join(_faults(kind, component, seconds))
        findings.append(Finding(owner, kind, component.name, LOADS, *_state(faults)))
    return findings


def components_of(host: Plugins, name: str | None) -> Iterator[tuple[str, str, Component]]:
    """Yield the plugin, the kind and the component, of one plugin or of all."""
    for kind in KINDS:
        for component in host.components(kind).values():
            owner = host.owner(kind, component.name)
            if name in (None, owner):
                yield owner, kind, component


def _state(fault: str | None) -> tuple[State, str | None]:
    return ("broken", fault) if fault else ("kept", None)


def _faults(kind: str, component: Component, seconds: float) -> Iterator[str]:
    """Yield what is wrong with a component, one sentence each."""
    try:
        with time_limit(seconds):
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
    yield from _faults_of_values(options, component.preset, kind, "its preset")
    for name, variant in component.variants.items():
        if name not in PRESETS:
            yield f"its variant {name!r} is no --preset; those are {', '.join(PRESETS)}"
        yield from _faults_of_values(options, {**component.preset, **variant}, kind, f"its variant {name!r}")


def _faults_of_values(options: type[Options], values: Mapping[str, Any], kind: str, what: str) -> Iterator[str]:
    """Yield what is wrong with the values that a preset or a variant gives to options."""
    fields = options.model_fields
    if unknown := sorted(values.keys() - fields.keys()):
        yield f"{what} sets options that it does not have: {', '.join(unknown)}"
    elif all(name in values for name, field in fields.items() if field.is_required()):
        try:
            resolve(options, values, kind)
        except OptionError as error:
            yield f"{what} does not fit: {error}"


def _base(kind: str) -> type:
    """Return the class that components of a kind derive from."""
    import finetune_kit

    names = {"dataset": "DatasetReader"}
    return getattr(finetune_kit, names.get(kind, kind.capitalize()))
