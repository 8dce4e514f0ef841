"""Every extension point of finetune-kit, and nothing else.

A plugin is a module behind an entry point of the group ``finetune_kit.plugins`` that implements any of these
hooks with ``@finetune_kit.hookimpl``. Each returns components: a name, one sentence, and where the class
stands, so that listing what is installed imports no implementation. `docs/plugin-hooks.md` has a whole
working plugin for each.
"""

from __future__ import annotations

from collections.abc import Iterable

from pluggy import HookimplMarker, HookspecMarker

from finetune_kit.component import Component

hookspec = HookspecMarker("ftkit")
hookimpl = HookimplMarker("ftkit")


@hookspec
def ftkit_strategies() -> Iterable[Component]:  # pyrefly: ignore[bad-return]  (a specification has no body)
    """Return strategies: subclasses of `finetune_kit.Strategy`."""


@hookspec
def ftkit_backbones() -> Iterable[Component]:  # pyrefly: ignore[bad-return]
    """Return backbones: subclasses of `finetune_kit.Backbone`."""


@hookspec
def ftkit_policies() -> Iterable[Component]:  # pyrefly: ignore[bad-return]
    """Return policies: subclasses of `finetune_kit.Policy`."""


@hookspec
def ftkit_datasets() -> Iterable[Component]:  # pyrefly: ignore[bad-return]
    """Return dataset readers: subclasses of `finetune_kit.DatasetReader`."""


@hookspec
def ftkit_trackers() -> Iterable[Component]:  # pyrefly: ignore[bad-return]
    """Return trackers: subclasses of `finetune_kit.Tracker`."""
