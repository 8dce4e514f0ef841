"""Installed backbones, made small, for contracts to be tried on beside the tiny ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetune_kit.backbone import Backbone
from finetune_kit.options import resolve
from finetune_kit.plugins import installed


@dataclass(frozen=True, eq=False)
class InstalledBackbone:
    """An installed backbone with options, called like a class: ``(num_items, max_length)`` → `Backbone`.

    Args:
        name: Its name, e.g. ``"nextitnet"``.
        options: Its options; keep it small.
    """

    name: str
    options: Mapping[str, Any]

    @property
    def __name__(self) -> str:
        """What pytest shows."""
        return self.name

    @cached_property
    def is_causal(self) -> bool:
        """Whether no position sees a later one; options may decide it."""
        return self(2, 2).is_causal

    def __call__(self, num_items: int, max_length: int) -> Backbone:
        """Return the backbone, with the weights that it starts from."""
        component = installed().component("backbone", self.name)
        backbone: type[Backbone] = component.load()
        options = resolve(backbone.Options, {**component.preset, **self.options}, "backbone")
        return backbone(num_items, max_length, options)


def installed_backbone(name: str, **options: Any) -> Any:
    """Return an installed backbone for ``backbones`` of a contract, e.g. ``installed_backbone("nextitnet", dim=8)``.

    It is looked up when a test uses it, so that a module of tests can be imported without it. To type checkers it is
    Any, as the backbones of a contract are classes otherwise.
    """
    return InstalledBackbone(name, options)
