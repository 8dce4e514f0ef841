"""Weights on disk: what was trained, bound by hashes to the base and the vocabularies that it belongs to.

A folder holds ``model.safetensors`` and ``model.json``. A pre-trained backbone holds all its weights; a fine-tuned
run holds only what its strategy trained, and the hash of the backbone that it started from.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finetune_kit.errors import CheckpointError
from finetune_kit.files import write_json, write_tensors

FORMAT_VERSION = 1


def save_model(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Write weights and what they belong to; return the weights' hash.

    Args:
        folder: Run folder.
        tensors: By name, on any device.
        facts: What must hold to load them: plain JSON values.
    """
    write_tensors(folder / "model.safetensors", tensors)
    digest = file_hash(folder / "model.safetensors")
    write_json(folder / "model.json", {"format_version": FORMAT_VERSION, "hash": digest, **facts})
    return digest


def load_model(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return weights and facts that `save_model` wrote.

    Raises:
        CheckpointError: When they are not there, damaged, or of another format version.
    """
    facts = read_facts(folder)
    path = folder / "model.safetensors"
    try:
        found = file_hash(path)
        if found != facts["hash"]:
            raise CheckpointError(
                f"{path} is damaged: its hash is {found}, {folder / 'model.json'} says {facts['hash']}"
            )
        return load_file(path), facts
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error


def read_facts(folder: Path) -> dict[str, Any]:
    """Return ``model.json`` of a folder.

    Raises:
        CheckpointError: When it is not there, no JSON, or of another format version.
    """
    path = folder / "model.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        is_comparison = (folder / "comparison.json").exists()
        advice = f"its runs are in {str(folder / 'runs')!r}" if is_comparison else "name a finished run's folder"
        raise CheckpointError(f"{str(folder)!r} holds no model: there is no {path.name}; {advice}") from None
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if facts.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {facts.get('format_version')}, this ftkit reads {FORMAT_VERSION}"
        )
    return facts


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


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def base_reference(base: Path, folder: Path) -> dict[str, str]:
    """Return how a run names its pre-trained base: the path from the run's folder to it, and the weights' hash."""
    return {"path": os.path.relpath(base, folder), "hash": read_facts(base)["hash"]}
