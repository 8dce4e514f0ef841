"""What `ftkit plugins new` writes: a whole project that works, from the one of its kind in ``plugin-templates``.

The templates are projects themselves, named ``my-strategy`` and so on; a name takes the place of theirs.
"""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import finetune_kit
from finetune_kit.errors import OptionError, unknown_name
from finetune_kit.files import write_text
from finetune_kit.plugins import Plugins

TEMPLATES = Path(__file__).parent / "plugin-templates"
TEMPLATE_KINDS = ("strategy", "backbone", "policy", "dataset")
SUFFIXES = (".py", ".toml", ".md", ".typed")
LONGEST_NAME = 24
"""In characters; lines of the templates stay short enough with it."""


def refuse_name(host: Plugins, kind: str, name: str) -> None:
    """Refuse a name that is none, or under which the new project could not live beside what is installed.

    Raises:
        UnknownNameError: For a kind that there is no template for.
        OptionError: When it can't name a plugin, or a plugin, component or package of that name is installed.
    """
    _refuse_unusable(kind, name)
    taken = {
        f"a {kind} named {name!r}": name in host.components(kind),
        f"a plugin named {name!r}": name in {plugin.name for plugin in host.loaded},
        f"a package named {_module(name)!r}": find_spec(_module(name)) is not None,
    }
    for what, is_taken in taken.items():
        if is_taken:
            raise OptionError(f"{what} is installed already; two of one name can't be: choose another")


def _refuse_unusable(kind: str, name: str) -> None:
    """Raise for a kind without a template, and for a name that can't name a plugin or would hide what it imports."""
    if kind not in TEMPLATE_KINDS:
        raise unknown_name("kind of plugin", kind, TEMPLATE_KINDS)
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise OptionError(f"{name!r} can't name a plugin; use small letters, digits and dashes, e.g. my-method")
    if len(name) > LONGEST_NAME:
        raise OptionError(f"{name!r} has {len(name)} characters; use at most {LONGEST_NAME}")
    if (hidden := _class_name(name)) in {*finetune_kit.__all__, *_imported_names(kind)}:
        raise OptionError(
            f"{name!r} can't name a plugin: its class would be called {hidden}, and hide what is imported by that "
            f"name; use another, e.g. my-{name}"
        )


def write_plugin(folder: Path, name: str, kind: str = "strategy") -> list[Path]:
    """Write a plugin project into a new folder; return its files.

    Args:
        folder: The project's folder; must not exist, or be empty.
        name: The name of what it adds, e.g. ``"my-method"``.
        kind: What it adds, one of `TEMPLATE_KINDS`.

    Raises:
        UnknownNameError: For a kind that there is no template for.
        OptionError: For a name that is none, or a folder that holds something.
    """
    _refuse_unusable(kind, name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"{str(folder)!r} holds something already; name a new folder")
    words = _words(name, kind)
    paths = template_files(kind)
    written = [folder / _with_words(path.as_posix(), words) for path in paths]
    for path, new in zip(paths, written, strict=True):
        write_text(new, _with_words((TEMPLATES / kind / path).read_text(encoding="utf-8"), words))
    return written


def template_files(kind: str) -> list[Path]:
    """Return the files of a template, below its folder; not what tools have left there."""
    template = TEMPLATES / kind
    found = [path.relative_to(template) for path in template.rglob("*") if path.suffix in SUFFIXES]
    return sorted(path for path in found if not any(part.startswith((".", "__pycache__")) for part in path.parts))


def _imported_names(kind: str) -> set[str]:
    """Return the names that a template imports."""
    sources = [
        (TEMPLATES / kind / path).read_text(encoding="utf-8") for path in template_files(kind) if path.suffix == ".py"
    ]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    return {
        name.asname or name.name
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }


def _words(name: str, kind: str) -> dict[str, str]:
    """Return what takes the place of a template's own words."""
    version = finetune_kit.__version__
    return {
        f"my-{kind}": name,
        f"my_{kind}": name.replace("-", "_"),
        f"My{kind.capitalize()}": _class_name(name),
        "finetune-kit>=0": f"finetune-kit>={version},<{_next_breaking(version)}",
    }


def _with_words(text: str, words: dict[str, str]) -> str:
    return re.sub("|".join(map(re.escape, words)), lambda match: words[match[0]], text)


def _next_breaking(version: str) -> str:
    """Return the first version that may break what works with this one: before 1.0, the next minor version."""
    major, minor = map(int, version.split(".")[:2])
    return f"{major + 1}" if major else f"0.{minor + 1}"


def _module(name: str) -> str:
    return f"ftkit_{name.replace('-', '_')}"


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))
