"""What a plugin registers: a name, one sentence, and where the implementation stands."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from finetune_kit.errors import PluginError, one_line


@dataclass(frozen=True)
class Component:
    """A strategy, backbone, policy, dataset reader or tracker that a plugin offers.

    Args:
        name: What users type, e.g. ``"uaf-hard"``.
        summary: One sentence for the listings.
        target: ``"package.module:Class"``; imported when the component is used, not when it is listed.
        preset: Options that this name stands for, e.g. ``{"n": 1}`` for ``finetune-last1``; users may override them.
        variants: Options that ``--preset NAME`` sets, by its name: what the ``paper`` has, or the ``authors``' code.
        contract: What `ftkit plugins check` sets on the contract class of `finetune_kit.testing`, by the names of its
            attributes, where the class's own won't do: ``{"options": {"dim": 8}}``, ``{"num_epochs": 6}``.
    """

    name: str
    summary: str
    target: str
    preset: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    contract: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def code_hash(self) -> str:
        """Return a hash of the file that the class stands in, for caches of what the class makes.

        Files of the same package that this one takes something from by ``from … import`` belong to it.
        """
        module = sys.modules[self.load().__module__]
        package = module.__name__.partition(".")[0]
        origins = (getattr(value, "__module__", None) for value in vars(module).values())
        used = {name for name in origins if isinstance(name, str) and name.startswith(f"{package}.")}
        digest = hashlib.sha256()
        for name in (module.__name__, *sorted(used - {module.__name__})):
            path = inspect.getsourcefile(sys.modules[name])
            digest.update(Path(path).read_bytes() if path else b"no source")
        return digest.hexdigest()

    def load(self) -> Any:
        """Return the class behind ``target``.

        Raises:
            PluginError: When the module can't be imported or has no such class.
        """
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:  # a third party's module may raise anything
            raise PluginError(
                f"{self.name!r} can't be used: loading {self.target} failed: {one_line(error, with_type=True)}"
            ) from error
