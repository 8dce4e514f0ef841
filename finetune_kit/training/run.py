"""Whole runs: pre-train once, fine-tune, measure, and leave a folder that tells everything."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from finetune_kit import __version__
from finetune_kit.checkpoint import base_reference, save_model
from finetune_kit.config import Config, to_toml
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.loading import SourceWindows, TargetBatches
from finetune_kit.data.split import Split, split, unseen_in_training
from finetune_kit.environment import git_state, versions
from finetune_kit.errors import DataError
from finetune_kit.evaluation.evaluate import Evaluator
from finetune_kit.files import write_json, write_table, write_text
from finetune_kit.plugins import installed
from finetune_kit.progress import Progress
from finetune_kit.seeding import seeded
from finetune_kit.strategy import Strategy
from finetune_kit.tracker import Tracker
from finetune_kit.training.assemble import (
    backbone_facts,
    build_backbone,
    build_strategy,
    load_base,
    target_facts,
)
from finetune_kit.training.loop import Fitted, Loop
from finetune_kit.training.measure import measure
from finetune_kit.training.pretrain import NextItem, hold_out


@dataclass
class Runner:
    """Carries one configuration through on one dataset.

    Args:
        config: Everything resolved.
        dataset: The dataset.
        fabric: Device and precision.
        progress: Who is told.
        resume: Go on from what an interrupted run left behind.
    """

    config: Config
    dataset: Dataset
    fabric: Fabric
    progress: Progress = field(default_factory=Progress)
    resume: bool = False

    @cached_property
    def split(self) -> Split:
        """The parts of the target instances; those with an item unseen in training treated as asked.

        Raises:
            DataError: When there are such instances and ``data.unseen`` is ``refuse``.
        """
        options, target = self.config.data, self.dataset.target
        parts = split(target.user, options.split, self.config.run.seed, options.fraction)
        unseen = {name: unseen_in_training(target.item, parts, getattr(parts, name)) for name in ("valid", "test")}
        counts = " and ".join(f"{mask.sum()} of {len(mask)} {name} instances" for name, mask in unseen.items())
        if not any(mask.any() for mask in unseen.values()):
            return parts
        if options.unseen == "refuse":
            raise DataError(
                f"{counts} have an item that no training instance has; data.unseen=keep or drop lets them pass"
            )
        self.progress.say(
            f"warning: {counts} have an item that no training instance has (data.unseen={options.unseen})"
        )
        if options.unseen == "keep":
            return parts
        for name, mask in unseen.items():
            if mask.all():
                raise DataError(
                    f"data.unseen=drop leaves no {name} instance: {counts} have an item unseen in training; use keep"
                )
        return Split(parts.train, parts.valid[~unseen["valid"]], parts.test[~unseen["test"]])

    def pretrain(self, root: Path) -> Path:
        """Return the folder of the pre-trained backbone below ``root``; it is made only if it is not there yet."""
        folder = (
            root / f"{self.config.run.backbone}-{self.dataset.name}-s{self.config.run.seed}-{self._pretrain_key()[:12]}"
        )
        if (folder / "metrics.json").exists():
            self.progress.say(f"pre-trained backbone: {folder} (reused)")
            return folder
        self.progress.say(f"pre-trained backbone: {folder}")
        Pretraining(self, folder).carry_out()
        return folder

    def finetune(self, folder: Path, base: Path | None) -> dict[str, Any]:
        """Fine-tune from a pre-trained base, measure, write the run folder; return its metrics."""
        return Finetuning(self, folder, base).carry_out()

    def build_strategy(self, base: Path | None) -> Strategy:
        """Return the strategy, on the CPU, over a pre-trained base."""
        weights = None if base is None else load_base(base, self.config, self.dataset)
        return build_strategy(self.config, self.dataset.num_source_items, self.dataset.num_target_items, weights)

    def evaluator(self, instances: np.ndarray) -> Evaluator:
        """Return what measures on given instances."""
        config = self.config
        return Evaluator(
            self.dataset, instances, self.split.train, config.evaluation, config.data.max_length, config.run.seed
        )

    def open_folder(self, folder: Path) -> list[Tracker]:
        """Make a run folder, write its configuration, start its trackers."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = self.config.tables()
        tables["files"] = {"dataset": str(self.dataset.path.resolve()), "dataset_fingerprint": self.dataset.fingerprint}
        write_text(folder / "config.toml", to_toml({**tables, "versions": versions(), "git": git_state()}))
        trackers = [installed().component("tracker", name).load()(folder) for name in self.config.run.trackers]
        for tracker in trackers:
            tracker.start(tables)
        return trackers

    def _pretrain_key(self) -> str:
        """Return a hash of everything that decides a pre-trained backbone."""
        decides = {
            "dataset": self.dataset.fingerprint,
            "pretrain": self.config.pretrain.model_dump(mode="json"),
            "precision": self.config.run.precision,
            "seed": self.config.run.seed,
            "version": __version__,
            **backbone_facts(self.config, self.dataset),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


@dataclass
class Pretraining:
    """Stage 1, into its own folder."""

    runner: Runner
    folder: Path

    def carry_out(self) -> None:
        """Pre-train the backbone and write its folder."""
        runner, config, dataset = self.runner, self.runner.config, self.runner.dataset
        options, seed = config.pretrain, config.run.seed
        trackers = runner.open_folder(self.folder)
        held_out = hold_out(dataset, options.valid_share, seed)
        latest = options.windows == "latest"
        size, length = options.batch_size, config.data.max_length
        train = SourceWindows(dataset, held_out.train, size, length, latest_only=latest)
        valid = SourceWindows(dataset, held_out.valid, size, length, latest_only=latest)
        model = self._model()
        loop = Loop(
            model,
            runner.fabric,
            "pretrain",
            learning_rate=options.learning_rate,
            epochs=options.epochs,
            patience=options.patience,
            monitor="valid_loss",
            lower_is_better=True,
            seed=seed,
            checkpoint=self.folder / "last" / "state.safetensors",
            observe=lambda record: _tell(trackers, "pretrain", record),
            progress=runner.progress,
        )
        fitted = loop.fit(train, lambda: {"valid_loss": self._held_out_loss(model, valid)}, resume=runner.resume)
        facts = {"kind": "pretrained", **backbone_facts(config, dataset), "base": None}
        digest = save_model(self.folder, model.trained_state(), facts)
        best = fitted.history[fitted.best_epoch - 1]
        metrics = {
            "backbone": config.run.backbone,
            "dataset": dataset.name,
            "seed": seed,
            "valid_loss": best["valid_loss"],
            "best_epoch": fitted.best_epoch,
            "epochs": len(fitted.history),
            "windows": len(train),
            "total_parameters": model.num_parameters()[1],
            "seconds": {"pretrain": fitted.seconds},
            "hash": digest,
        }
        _close_folder(self.folder, metrics, fitted, trackers)

    def _model(self) -> NextItem:
        runner, options = self.runner, self.runner.config.pretrain
        backbone = build_backbone(runner.config, runner.dataset.num_source_items)
        frequency = np.bincount(np.asarray(runner.dataset.source_items) - 1, minlength=runner.dataset.num_source_items)
        num_negatives = options.num_negatives if options.loss == "sampled-softmax" else 0
        with seeded(runner.config.run.seed, "next-item"):
            return NextItem(backbone, torch.from_numpy(frequency).float(), num_negatives, runner.config.run.seed)

    @torch.no_grad()
    def _held_out_loss(self, model: NextItem, valid: SourceWindows) -> float:
        """Return the exact loss on held-out users, nats per item."""
        model.eval()
        total, count = 0.0, 0
        for windows in valid.epoch():
            moved = windows.to(self.runner.fabric.device)
            labels = int((moved.labels != 0).sum())
            with self.runner.fabric.autocast():
                total += model.exact_loss(moved).item() * labels
            count += labels
        return total / count


@dataclass
class Finetuning:
    """Stage 2, into the run's folder."""

    runner: Runner
    folder: Path
    base: Path | None

    def carry_out(self) -> dict[str, Any]:
        """Fine-tune, measure on validation and test, write the run folder; return ``metrics.json``."""
        runner, config = self.runner, self.runner.config
        parts = runner.split  # first: it may refuse
        strategy = runner.build_strategy(self.base)
        trackers = runner.open_folder(self.folder)
        fitted = self._fit(strategy, parts, trackers)
        strategy.finish_training()
        facts = {
            "kind": "fine-tuned run",
            "strategy": config.run.strategy,
            **backbone_facts(config, runner.dataset),
            **target_facts(runner.dataset),
            "base": None if self.base is None else base_reference(self.base, self.folder),
        }
        save_model(self.folder, strategy.trained_state(), facts)
        started = time.perf_counter()
        measured = measure(runner, strategy)
        seconds = time.perf_counter() - started
        trainable, total = strategy.num_parameters()
        metrics = {
            "strategy": config.run.strategy,
            "backbone": config.run.backbone,
            "dataset": runner.dataset.name,
            "seed": config.run.seed,
            "protocol": config.data.split,
            **measured.metrics,
            "best_epoch": fitted.best_epoch,
            "epochs": len(fitted.history),
            "trainable_parameters": trainable,
            "total_parameters": total,
            "seconds": {"pretrain": self._pretrain_seconds(), "finetune": fitted.seconds, "evaluate": seconds},
            "instances_per_second": fitted.num_instances / fitted.seconds,
        }
        measured.write(self.folder)
        _close_folder(self.folder, metrics, fitted, trackers)
        return metrics

    def _fit(self, strategy: Strategy, parts: Split, trackers: list[Tracker]) -> Fitted:
        runner, config, options = self.runner, self.runner.config, self.runner.config.finetune
        protocol, cutoff = config.evaluation.protocols[0], config.evaluation.cutoffs[0]
        evaluator = runner.evaluator(parts.valid)
        loop = Loop(
            strategy,
            runner.fabric,
            "finetune",
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            epochs=options.epochs,
            patience=options.patience,
            monitor=f"mrr@{cutoff}",
            seed=config.run.seed,
            checkpoint=self.folder / "last" / "state.safetensors",
            observe=lambda record: _tell(trackers, "finetune", record),
            progress=runner.progress,
        )
        batches = TargetBatches(
            runner.dataset,
            parts.train,
            options.batch_size,
            config.data.max_length,
            options.num_negatives,
            options.batching,
        )

        def validate() -> dict[str, float]:
            evaluation = evaluator.evaluate(strategy, runner.fabric, (protocol,))
            return evaluation.metrics(config.evaluation.cutoffs)[protocol]

        return loop.fit(batches, validate, resume=runner.resume)

    def _pretrain_seconds(self) -> float:
        """Return what pre-training the base took, also where it was reused; 0 without a base."""
        if self.base is None:
            return 0.0
        return json.loads((self.base / "metrics.json").read_text())["seconds"]["pretrain"]


def _tell(trackers: list[Tracker], stage: str, record: Mapping[str, float]) -> None:
    for tracker in trackers:
        tracker.record(stage, record)


def _close_folder(folder: Path, metrics: dict[str, Any], fitted: Fitted, trackers: list[Tracker]) -> None:
    """Write history and metrics; ``metrics.json`` comes last, so its presence means that the run is finished."""
    columns = {key: np.array([record[key] for record in fitted.history]) for key in fitted.history[0]}
    write_table(folder / "history.parquet", columns)
    write_json(folder / "metrics.json", metrics)
    for tracker in trackers:
        tracker.finish(metrics)
