"""What `ftkit plugins new` writes: a project with one strategy that works, for its author to change."""

from __future__ import annotations

import re
from pathlib import Path

from finetune_kit.errors import OptionError
from finetune_kit.files import write_text

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "ftkit-{name}"
version = "0.1.0"
description = "A strategy for finetune-kit"
requires-python = ">=3.10"
dependencies = ["finetune-kit"]

[project.entry-points."finetune_kit.plugins"]
{name} = "ftkit_{module}"

[tool.setuptools]
packages = ["ftkit_{module}"]
"""

HOOKS = '''\
"""What finetune-kit loads to list this plugin; it imports no torch."""

from finetune_kit import Component, hookimpl


@hookimpl
def ftkit_strategies() -> list[Component]:
    """Offer the strategy."""
    return [Component("{name}", "All but the item embedding is trained", "ftkit_{module}.strategy:{klass}")]
'''

STRATEGY = '''\
"""{klass}: say here what the strategy does, where it was published, its equations, and how it differs from them."""

from __future__ import annotations

from finetune_kit import Options, Strategy


class {klass}Options(Options):
    """Options of {klass}."""

    freeze_embedding: bool = True
    """Leave the item embedding as it was pre-trained."""


class {klass}(Strategy):
    """Train all but the item embedding."""

    Options = {klass}Options
    options: {klass}Options

    def build(self) -> None:
        """Freeze what does not train; here copies, patches and policies would be added."""
        if self.options.freeze_embedding:
            self.freeze(self.backbone.item_embedding)
'''

TEST = '''\
"""Everything that a strategy promises, tried on small backbones."""

from finetune_kit.testing import StrategyContract


class Test{klass}(StrategyContract):
    strategy = "{name}"
'''


def write_plugin(folder: Path, name: str) -> list[Path]:
    """Write a plugin project into a new folder; return its files.

    Args:
        folder: The project's folder; must not exist, or be empty.
        name: The strategy's name, e.g. ``"my-method"``.

    Raises:
        OptionError: For a name that is none, or a folder that holds something.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise OptionError(f"{name!r} can't name a plugin; use small letters, digits and dashes, e.g. my-method")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"{str(folder)!r} holds something already; name a new folder")
    module, klass = name.replace("-", "_"), "".join(part.capitalize() for part in name.split("-"))
    texts = {
        "pyproject.toml": PYPROJECT,
        f"ftkit_{module}/__init__.py": HOOKS,
        f"ftkit_{module}/strategy.py": STRATEGY,
        f"tests/test_{module}.py": TEST,
    }
    for path, text in texts.items():
        write_text(folder / path, text.format(name=name, module=module, klass=klass))
    return [folder / path for path in texts]
