"""Find, load and list plugins; refuse clashes; let a broken plugin disable itself, not the program."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from itertools import pairwise

import pluggy

from finetune_kit import hookspecs
from finetune_kit.component import Component
from finetune_kit.errors import PluginError, UnknownNameError, did_you_mean, one_line, unknown_name

GROUP = "finetune_kit.plugins"
BUILT_IN = "finetune-kit"
"""The distribution whose plugins are always loaded."""
ONLY = "FTKIT_PLUGINS"
"""The environment variable that names the other distributions whose plugins may be imported; empty for none."""
KINDS = {
    "strategy": "strategies",
    "backbone": "backbones",
    "policy": "policies",
    "dataset": "datasets",
    "tracker": "trackers",
}
"""What plugins can add: singular (in errors) to plural (in hook names and commands)."""


@dataclass(frozen=True)
class Loaded:
    """One installed plugin, as ``ftkit plugins list`` shows it; ``failure`` is None for a working one."""

    name: str
    module: str
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    failure: str | None = None
    file: str = "(none)"
    is_left_out: bool = False


class Plugins:
    """The plugins of one process.

    Args:
        found: Entry points to load; None takes those installed. Tests hand in their own.
        only: Distributions whose plugins are imported beside the built-in ones; None imports all.

    Raises:
        PluginError: When two plugins have the same name, or offer components of one kind and name.
        UnknownNameError: When ``only`` names a distribution that offers no plugin.
    """

    def __init__(self, found: Iterable[EntryPoint] | None = None, only: Collection[str] | None = None) -> None:
        self._manager = pluggy.PluginManager("ftkit")
        self._manager.add_hookspecs(hookspecs)
        self._components: dict[str, dict[str, Component]] = {kind: {} for kind in KINDS}
        self._owners: dict[tuple[str, str], str] = {}
        entries = sorted(entry_points(group=GROUP) if found is None else found, key=lambda entry: entry.name)
        chosen = entries if only is None else _from_distributions(entries, only)
        _refuse_clashes(chosen)
        self.loaded = [self._load(entry) for entry in chosen]
        others = [entry for entry in entries if not any(entry is one for one in chosen)]
        self.left_out = [replace(_about(entry), is_left_out=True) for entry in others]

    @property
    def failures(self) -> list[Loaded]:
        """The plugins that could not be loaded, each with its reason."""
        return [plugin for plugin in self.loaded if plugin.failure]

    def components(self, kind: str) -> dict[str, Component]:
        """Return the components of one kind (a key of `KINDS`, e.g. ``"strategy"``) by name."""
        return dict(sorted(self._components[kind].items()))

    def component(self, kind: str, name: str) -> Component:
        """Return the component of that kind and name.

        Raises:
            UnknownNameError: When there is none; names the closest.
        """
        if name not in self._components[kind]:
            for plugin in self.failures:
                if plugin.name == name:
                    raise UnknownNameError(
                        f"the plugin {name!r} is disabled: {plugin.failure}; mend it, or see `ftkit plugins list`"
                    )
            disabled = ", ".join(repr(plugin.name) for plugin in self.failures)
            hint = f". Disabled plugins: {disabled}; see `ftkit plugins list`" if disabled else ""
            if left_out := ", ".join(repr(plugin.name) for plugin in self.left_out):
                hint += f". Plugins left out by --no-plugins or {ONLY}: {left_out}"
            raise UnknownNameError(f"{unknown_name(kind, name, self._components[kind])}{hint}")
        return self._components[kind][name]

    def owner(self, kind: str, name: str) -> str:
        """Return the name of the plugin that offers a component."""
        return self._owners[kind, name]

    def _load(self, entry: EntryPoint) -> Loaded:
        """Load one plugin and take its components, all or none; a failure is recorded, not raised."""
        about = _about(entry)
        try:
            module = entry.load()
            self._manager.register(module, name=entry.name)
            offered = {kind: self._call(kind, module) for kind in KINDS}
            hooks = tuple(sorted(caller.name for caller in self._manager.get_hookcallers(module) or []))
            _refuse_unknown_hooks(hooks)
        except (Exception, SystemExit) as error:  # a third party's module may raise anything
            if self._manager.has_plugin(entry.name):
                self._manager.unregister(name=entry.name)
            return replace(about, failure=one_line(error, with_type=not isinstance(error, PluginError)))
        for kind, components in offered.items():
            for component in components:
                self._add(kind, component, entry.name)
        return replace(about, hooks=hooks)

    def _call(self, kind: str, module: object) -> list[Component]:
        """Return what one plugin's hook of a kind offers; an empty list if it has none."""
        name = f"ftkit_{KINDS[kind]}"
        others = [plugin for plugin in self._manager.get_plugins() if plugin is not module]
        caller = self._manager.subset_hook_caller(name, others)
        if os.environ.get("FTKIT_TRACE") and caller.get_hookimpls():
            print(f"ftkit: calling {name} of {self._manager.get_name(module)}", file=sys.stderr)
        components = []
        for offered in caller():
            if isinstance(offered, str | Component) or not isinstance(offered, Iterable):
                raise PluginError(
                    f"{name} returned {offered!r}; it must return a list of finetune_kit.Component objects"
                )
            components += offered
        for component in components:
            if not isinstance(component, Component):
                raise PluginError(f"{name} returned {component!r}; it must return finetune_kit.Component objects")
        return components

    def _add(self, kind: str, component: Component, plugin: str) -> None:
        owner = self._owners.setdefault((kind, component.name), plugin)
        if component.name in self._components[kind]:
            if owner == plugin:
                raise PluginError(
                    f"plugin {plugin!r} offers two of the kind {kind} named {component.name!r}; rename one"
                )
            raise PluginError(
                f"two plugins offer a {kind} named {component.name!r}: {owner!r} and {plugin!r}; uninstall one of them"
            )
        self._components[kind][component.name] = component


def _refuse_unknown_hooks(hooks: Iterable[str]) -> None:
    """Name a misspelt hook: pluggy by itself ignores hooks that no specification knows."""
    known = [f"ftkit_{plural}" for plural in KINDS.values()]
    for hook in hooks:
        if hook not in known:
            raise PluginError(f"no hook named {hook!r}.{did_you_mean(hook, known)} Hooks: {', '.join(known)}")


def _about(entry: EntryPoint) -> Loaded:
    """Return what is known of a plugin without importing it."""
    top = entry.value.partition(":")[0].partition(".")[0]  # to find a module inside it, Python would import it
    try:
        spec = sys.modules[top].__spec__ if top in sys.modules else find_spec(top)
    except ValueError:
        spec = None
    file = spec.origin if spec and spec.origin else "(none)"
    names = (entry.dist.name, entry.dist.version) if entry.dist else ("(none)", "(none)")
    return Loaded(entry.name, entry.value, *names, file=file)


def _from_distributions(entries: list[EntryPoint], only: Collection[str]) -> list[EntryPoint]:
    """Return the plugins of the built-in distribution and of those named; `ONLY` is where names come from."""
    known = {_normal(entry.dist.name): entry.dist.name for entry in entries if entry.dist}
    for name in only:
        if _normal(name) not in known:
            raise UnknownNameError(f"{ONLY}: {unknown_name('distribution with plugins', name, known.values())}")
    wanted = {_normal(name) for name in (BUILT_IN, *only)}
    return [entry for entry in entries if entry.dist and _normal(entry.dist.name) in wanted]


def _normal(name: str) -> str:
    """Return a distribution's name as package indexes compare it: ``My_Plugin`` is ``my-plugin``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _refuse_clashes(entries: list[EntryPoint]) -> None:
    for one, other in pairwise(entries):
        if one.name == other.name:
            owners = " and ".join(f"{e.dist.name if e.dist else e.value}" for e in (one, other))
            raise PluginError(f"two plugins are named {one.name!r}: {owners}; uninstall one of them")


@cache
def installed() -> Plugins:
    """Return the installed plugins, those alone that ``FTKIT_PLUGINS`` lets in, loaded once a process."""
    names = os.environ.get(ONLY)
    return Plugins(only=None if names is None else [name.strip() for name in names.split(",") if name.strip()])
