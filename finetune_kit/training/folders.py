"""What stands in the folders of runs and of pre-trained backbones, whatever their weights come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from finetune_kit.checkpoint import PRETRAINED, save_model
from finetune_kit.checksums import refuse_changed, write_checksums
from finetune_kit.config import Config, to_toml
from finetune_kit.environment import git_state, versions
from finetune_kit.files import json_text, write_text
from finetune_kit.foreign import one_name
from finetune_kit.processes import here
from finetune_kit.progress import Progress
from finetune_kit.training.assemble import backbone_facts

if TYPE_CHECKING:
    from finetune_kit.data.dataset import Dataset

BASE_SECTIONS = ("run", "data", "backbone", "pretrain")
"""Sections of the configuration that decide a pre-trained backbone."""


def write_config(folder: Path, config: Config, dataset: Dataset, sections: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Write ``config.toml``: some sections, and for the record dataset, versions and git; return what decides."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: table for name, table in config.tables().items() if name in sections}
    tables["files"] = {"dataset": str(dataset.path.resolve()), "dataset_fingerprint": dataset.fingerprint}
    write_text(folder / "config.toml", to_toml({**tables, "versions": versions(), "git": git_state()}))
    return tables


def save_base(
    folder: Path,
    config: Config,
    dataset: Dataset,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any] | None = None,
) -> str:
    """Write a pre-trained backbone's weights, bound to its options and source items; return their hash.

    Args:
        folder: The backbone's folder.
        config: What the backbone was made by.
        dataset: Whose source items it knows.
        tensors: Its weights; names of the backbone's own begin with ``backbone.``.
        facts: More of what the weights are bound to; ``about`` for the record.
    """
    known = {"kind": PRETRAINED, **backbone_facts(config, dataset), "base": None}
    return save_model(folder, tensors, {**known, **(facts or {})})


def write_base(
    folder: Path,
    config: Config,
    dataset: Dataset,
    tensors: Mapping[str, Tensor],
    metrics: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    sections: Iterable[str] = BASE_SECTIONS,
) -> str:
    """Write the whole folder of a backbone that is ready, from which fine-tuning can start; return its hash.

    Args:
        folder: What is written.
        config: As for `save_base`.
        dataset: As for `save_base`.
        tensors: As for `save_base`.
        metrics: What is known of it, for ``metrics.json``; ``seconds`` with a ``pretrain`` among it.
        facts: As for `save_base`.
        sections: Of the configuration, those that decided it.
    """
    write_config(folder, config, dataset, sections)
    digest = save_base(folder, config, dataset, tensors, facts)
    names = {"backbone": config.run.backbone, "dataset": dataset.name, "seed": config.run.seed}
    finish_folder(folder, {**names, **metrics, "hash": digest})
    return digest


def finish_folder(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write ``metrics.json``, whose presence means that all else is there, and before it the checksums of all."""
    text = json_text(metrics)
    write_checksums(folder, {"metrics.json": text})
    write_text(folder / "metrics.json", text)


def base_folder(root: Path, config: Config, dataset: Dataset, decides: Any, kind: str = "") -> Path:
    """Return the folder of a backbone below ``root``, there or not; arguments are those of `base_made_once`."""
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    words = [config.run.backbone, dataset.name, f"s{config.run.seed}", *([kind] if kind else []), digest]
    return root / one_name("-".join(words))


def base_made_once(
    root: Path,
    config: Config,
    dataset: Dataset,
    decides: Any,
    make: Callable[[Path], None],
    progress: Progress,
    kind: str = "",
) -> Path:
    """Return the folder of a backbone below ``root``; it is made only if it is not there yet.

    Args:
        root: Where backbones stand.
        config: Names the backbone and the seed; they stand in the folder's name, and so does the dataset's.
        dataset: Whose source items it knows.
        decides: Everything that decides its weights and what stands beside them, plain JSON values.
        make: Writes the whole folder.
        progress: Who is told.
        kind: Stands in the folder's name; nothing for a backbone that is pre-trained and no more.
    """
    folder, what = base_folder(root, config, dataset, decides, kind), f"{kind or 'pre-trained'} backbone"
    is_there = here().alone((folder / "metrics.json").exists)
    progress.say(f"{what}: {folder}{' (reused)' if is_there else ''}")
    if is_there:
        here().alone(lambda: refuse_changed(folder, "delete the folder, and the backbone is made again"))
    else:
        make(folder)
    return folder
