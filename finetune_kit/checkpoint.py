"""Weights on disk: what was trained, bound by hashes to the base and the vocabularies that it belongs to.

A folder holds ``model.safetensors`` and ``model.json``. A pre-trained backbone holds all its weights; a fine-tuned
run holds only what its strategy trained, and the hash of the backbone that it started from.

A reader must understand every fact in ``model.json`` but those below ``about``, which are told for the record. So a
later version that adds a fact on which the weights' meaning depends is refused by earlier ones, never misread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from finetune_kit import __version__
from finetune_kit.checksums import file_hash
from finetune_kit.environment import written_by
from finetune_kit.errors import CheckpointError
from finetune_kit.files import write_json, write_tensors
from finetune_kit.foreign import read_json, refuse_large_header

FORMAT_VERSION = 1
PRETRAINED, RUN = "pretrained", "fine-tuned run"
"""The kinds of folders."""
_BACKBONE = {"kind", "backbone", "backbone_options", "max_length", "num_source_items", "source_items_hash", "base"}
_HEAD = {"num_target_items", "target_items_hash"}
NEEDED = {PRETRAINED: _BACKBONE, RUN: _BACKBONE | _HEAD | {"strategy"}}
"""What must be known of weights of a kind, besides format version and hash."""
KNOWN = NEEDED[RUN] | {"format_version", "hash", "written_by", "about"}
"""Every fact that this version understands."""


def save_model(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Write weights and what they belong to; return the weights' hash.

    Args:
        folder: Run folder.
        tensors: By name, on any device.
        facts: What must hold to load them: plain JSON values, those that `NEEDED` names for their ``kind``; below
            ``about`` anything that is told for the record.
    """
    assert NEEDED[facts["kind"]] <= facts.keys() <= KNOWN, "a fact that is not in KNOWN would be refused when read"
    write_tensors(folder / "model.safetensors", tensors)
    digest = file_hash(folder / "model.safetensors")
    head = {"format_version": FORMAT_VERSION, "written_by": __version__, "hash": digest}
    write_json(folder / "model.json", {**head, **facts})
    return digest


def load_model(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return weights and facts that `save_model` wrote.

    Raises:
        CheckpointError: When they are not there, damaged, or of another format version.
    """
    facts = read_facts(folder)
    path = folder / "model.safetensors"
    try:
        refuse_large_header(path)
        found = file_hash(path)
        if found != facts["hash"]:
            raise CheckpointError(
                f"{path} is damaged: its hash is {found}, {folder / 'model.json'} says {facts['hash']}"
            )
        return load_file(path), facts
    except CheckpointError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that `save_model` wrote; no more than the file's header is read.

    Raises:
        CheckpointError: When there are none, or the header is damaged.
    """
    path = folder / "model.safetensors"
    try:
        refuse_large_header(path)
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error


def read_facts(folder: Path) -> dict[str, Any]:
    """Return ``model.json`` of a folder.

    Raises:
        CheckpointError: When it is not there, damaged, or written by a later version that means more by it.
    """
    path = folder / "model.json"
    try:
        facts = read_json(path)
    except FileNotFoundError:
        is_comparison = (folder / "comparison.json").exists()
        advice = f"its runs are in {str(folder / 'runs')!r}" if is_comparison else "name a finished run's folder"
        raise CheckpointError(f"{str(folder)!r} holds no model: there is no {path.name}; {advice}") from None
    except (OSError, ValueError, RecursionError) as error:  # no file, not UTF-8, no JSON, nested without end
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("format_version"), int):
        raise CheckpointError(f"{path} is damaged: it names no format_version; copy or make the folder again")
    _refuse_later(facts, path)
    _refuse_incomplete(facts, path)
    return facts


def _refuse_later(facts: Mapping[str, Any], path: Path) -> None:
    """Raise for facts that this version does not understand."""
    writer = written_by(facts.get("written_by"))
    if (found := facts["format_version"]) != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {found}, this ftkit reads {FORMAT_VERSION}; {writer}")
    if unknown := sorted(facts.keys() - KNOWN):
        raise CheckpointError(f"{path} says {', '.join(unknown)}, which this ftkit does not know; {writer}")
    if "kind" in facts and facts["kind"] not in list(NEEDED):  # a list: what is no text can't be looked up in a dict
        raise CheckpointError(f"{path} is of the kind {facts['kind']!r}, which this ftkit does not know; {writer}")


def _refuse_incomplete(facts: Mapping[str, Any], path: Path) -> None:
    """Raise for facts that are not there, or no facts."""
    needed = {"hash", *NEEDED.get(facts.get("kind", RUN), set())}
    lacking = sorted(needed - facts.keys())
    base = facts.get("base")
    if base is not None and not (isinstance(base, dict) and all(type(base.get(k)) is str for k in ("path", "hash"))):
        lacking = ["base.path and base.hash"]
    if lacking:
        raise CheckpointError(f"{path} is damaged: it lacks {', '.join(lacking)}; copy or make the folder again")


def refuse_other(facts: Mapping[str, Any], expected: Mapping[str, Any], where: Path) -> None:
    """Check that hashes and sizes saved with weights are those at hand.

    Raises:
        CheckpointError: Naming the first that differs, with both values.
    """
    for name, value in expected.items():
        if facts[name] != value:
            what = name.replace("_", " ")
            raise CheckpointError(
                f"the weights in {str(where)!r} have another {what}: {facts[name]} there, {value} here"
            )


def base_reference(base: Path, folder: Path) -> dict[str, str]:
    """Return how a run names its pre-trained base: the path from the run's folder to it, and the weights' hash."""
    return {"path": os.path.relpath(base, folder), "hash": read_facts(base)["hash"]}
