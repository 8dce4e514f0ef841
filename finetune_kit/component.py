"""What a plugin registers: a name, one sentence, and where the implementation stands."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from finetune_kit.errors import PluginError


@dataclass(frozen=True)
class Component:
    """A strategy, backbone, policy, dataset reader or tracker that a plugin offers.

    Args:
        name: What users type, e.g. ``"uaf-hard"``.
        summary: One sentence for the listings.
        target: ``"package.module:Class"``; imported when the component is used, not when it is listed.
        preset: Options that this name stands for, e.g. ``{"n": 1}`` for ``finetune-last1``; users may override them.
    """

    name: str
    summary: str
    target: str
    preset: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def load(self) -> Any:
        """Return the class behind ``target``.

        Raises:
            PluginError: When the module can't be imported or has no such class.
        """
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise PluginError(f"{self.name!r} can't be used: loading {self.target} failed: {error}") from error
