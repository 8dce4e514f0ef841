"""The two stages of a run, each into a folder that tells everything."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune_kit.checkpoint import RUN, base_reference, read_facts, save_model
from finetune_kit.config import SECTIONS
from finetune_kit.data.loading import SourceWindows, TargetBatches
from finetune_kit.data.split import Split
from finetune_kit.files import read_metrics, write_table
from finetune_kit.memory import enough_memory
from finetune_kit.processes import here
from finetune_kit.seeding import seeded
from finetune_kit.strategy import Strategy
from finetune_kit.tracker import Tracker
from finetune_kit.training.assemble import backbone_facts, build_backbone, target_facts
from finetune_kit.training.determinism import machine_facts
from finetune_kit.training.experiment import EVALUATE_LESS, Experiment
from finetune_kit.training.folders import BASE_SECTIONS, finish_folder, save_base
from finetune_kit.training.leading import LeadingStages
from finetune_kit.training.loop import Fitted, Loop
from finetune_kit.training.measure import Measured, measure
from finetune_kit.training.pretrain import NextItem, hold_out, with_next_item


@dataclass
class Pretraining:
    """Stage 1, into its own folder."""

    experiment: Experiment
    folder: Path

    def carry_out(self) -> None:
        """Pre-train the backbone and write its folder."""
        experiment, config, dataset = self.experiment, self.experiment.config, self.experiment.dataset
        options, seed = config.pretrain, config.run.seed
        trackers = experiment.open_folder(self.folder, BASE_SECTIONS)
        held_out = hold_out(dataset, options.valid_share, seed)
        latest = options.windows == "latest"
        size, length = options.batch_size, config.data.max_length
        train = SourceWindows(dataset, held_out.train, size, length, latest_only=latest)
        valid = SourceWindows(dataset, held_out.valid, size, length, latest_only=latest)
        model = experiment.divided(self._model)
        loop = Loop(
            model,
            experiment.fabric,
            "pretrain",
            learning_rate=options.learning_rate,
            accumulate=options.accumulate,
            optimizer=options.optimizer,
            epochs=options.epochs,
            patience=options.patience,
            monitor="valid_loss",
            lower_is_better=True,
            compile=config.run.compile,
            seed=seed,
            checkpoint=self.folder / "last" / "state.safetensors",
            save_minutes=config.run.save_minutes,
            bound_to=experiment.bound_to(("backbone", "pretrain")),
            begin=lambda history: _begin(trackers, "pretrain", history),
            observe=lambda record: _tell(trackers, "pretrain", record),
            progress=experiment.progress,
        )
        fitted = loop.fit(train, lambda: {"valid_loss": self._held_out_loss(model, valid)}, resume=experiment.resume)
        state = model.whole_state()
        digest = here().alone(lambda: save_base(self.folder, config, dataset, state))
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
            "machine": machine_facts(experiment.fabric.device, config.run.deterministic),
            "hash": digest,
        }
        here().alone(lambda: _close_folder(self.folder, metrics, fitted, trackers))

    def _model(self) -> NextItem:
        experiment, options = self.experiment, self.experiment.config.pretrain
        backbone = build_backbone(experiment.config, experiment.dataset.num_source_items)
        frequency = experiment.dataset.source_frequency()
        num_negatives = options.num_negatives if options.loss == "sampled-softmax" else 0
        with seeded(experiment.config.run.seed, "next-item"):
            return NextItem(backbone, torch.from_numpy(frequency).float(), num_negatives, experiment.config.run.seed)

    @torch.no_grad()
    @enough_memory("the held-out loss", "lower pretrain.batch_size or data.max_length")
    def _held_out_loss(self, model: NextItem, valid: SourceWindows) -> float:
        """Return the exact loss on held-out users, nats per item."""
        model.eval()
        sums = []
        for windows in here().dealt(valid.epoch()):
            moved = windows.to(self.experiment.fabric.device)
            guesses = model.prepared(moved)  # of a backbone that is not causal, the last item of each window is hidden
            with self.experiment.fabric.autocast():
                sums.append((model.exact_loss(guesses).item() * guesses.num_labels, guesses.num_labels))
        total, count = 0.0, 0
        for nats, labels in here().collected(sums):
            total += nats
            count += labels
        return total / count


@dataclass(frozen=True)
class Start:
    """What a fine-tuning goes on from, where that is not the pre-trained base alone.

    Args:
        state: The strategy's weights, as its `trained_state` returns them.
        origin: The hash of the weights that they come from.
        about: Where they come from, for the record.
    """

    state: Mapping[str, Tensor]
    origin: str
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Finetuning:
    """Stage 2, into the run's folder."""

    experiment: Experiment
    folder: Path
    base: Path | None
    start: Start | None = None

    def carry_out(self) -> dict[str, Any]:
        """Fine-tune, measure on validation and test, write the run folder; return ``metrics.json``."""
        experiment = self.experiment
        parts = experiment.split  # first: it may refuse
        strategy = experiment.divided(self._strategy)
        trackers = experiment.open_folder(self.folder, SECTIONS)
        if experiment.earlier is not None:
            here().alone(partial(experiment.earlier.write, self.folder))
        with self._keeping(strategy):
            return self._carry_out(strategy, parts, trackers)

    def _strategy(self) -> Strategy:
        strategy = self.experiment.build_strategy(self.base)
        if self.start is not None:
            strategy.load_trained_state(self.start.state)
        return strategy

    def _carry_out(self, strategy: Strategy, parts: Split, trackers: list[Tracker]) -> dict[str, Any]:
        experiment, config = self.experiment, self.experiment.config
        fitted = self._fit(strategy, parts, trackers)
        strategy.finish_training()
        facts = {
            "kind": RUN,
            "strategy": config.run.strategy,
            **backbone_facts(config, experiment.dataset),
            **target_facts(experiment.dataset),
            "base": None if self.base is None else base_reference(self.base, self.folder),
        }
        if self.start is not None:
            facts["about"] = dict(self.start.about)
        state = strategy.whole_state()
        here().alone(lambda: save_model(self.folder, state, facts))
        started = time.perf_counter()
        with enough_memory("evaluation", EVALUATE_LESS):
            measured = measure(experiment, strategy)
        seconds = time.perf_counter() - started - measured.control_seconds
        trainable, total = strategy.num_parameters()
        metrics = {
            "strategy": config.run.strategy,
            "backbone": config.run.backbone,
            "dataset": experiment.dataset.name,
            "task": config.run.task,
            "seed": config.run.seed,
            "protocol": config.data.split,
            **measured.metrics,
            "best_epoch": fitted.best_epoch,
            "epochs": len(fitted.history),
            "remarks": strategy.remarks(fitted.best_epoch),
            "trainable_parameters": trainable,
            "total_parameters": total,
            "seconds": {
                "pretrain": self._pretrain_seconds(),
                "finetune": fitted.seconds,
                "evaluate": seconds,
                "control": measured.control_seconds,
            },
            "instances_per_second": fitted.num_instances / fitted.training_seconds,
            "machine": machine_facts(experiment.fabric.device, config.run.deterministic),
        }
        here().alone(lambda: self._close(measured, metrics, fitted, trackers))
        return metrics

    def _close(self, measured: Measured, metrics: dict[str, Any], fitted: Fitted, trackers: list[Tracker]) -> None:
        measured.write(self.folder)
        _close_folder(self.folder, metrics, fitted, trackers)

    def _keeping(self, strategy: Strategy) -> AbstractContextManager[Any]:
        """Return within what the strategy is told what its still stages make of users, if that is asked for."""
        options, dataset = self.experiment.config.finetune, self.experiment.dataset
        if options.cache == "off":
            return nullcontext()
        sequences = partial(dataset.sequences, max_length=self.experiment.config.data.max_length)
        users = np.unique(dataset.target.user)
        name = f"leading-{here().rank}.bin" if here().rank else "leading.bin"  # each process has its own
        return LeadingStages(strategy, users, sequences, options.cache_memory, self.folder / "last" / name)

    def _fit(self, strategy: Strategy, parts: Split, trackers: list[Tracker]) -> Fitted:
        experiment, options = self.experiment, self.experiment.config.finetune
        loop = Loop(
            strategy,
            experiment.fabric,
            "finetune",
            learning_rate=options.learning_rate,
            accumulate=options.accumulate,
            optimizer=options.optimizer,
            weight_decay=options.weight_decay,
            epochs=options.epochs,
            patience=options.patience,
            monitor=experiment.monitor,
            compile=experiment.config.run.compile,
            seed=experiment.config.run.seed,
            checkpoint=self.folder / "last" / "state.safetensors",
            save_minutes=experiment.config.run.save_minutes,
            bound_to={
                **experiment.bound_to(SECTIONS),
                **({} if self.base is None else {"base": read_facts(self.base)["hash"]}),
                **({} if self.start is None else {"start": self.start.origin}),
            },
            begin=lambda history: _begin([*trackers, *experiment.watchers], "finetune", history),
            observe=lambda record: _tell([*trackers, *experiment.watchers], "finetune", record),
            progress=experiment.progress,
        )
        batches = self._batches(parts, with_source=strategy.needs_source_batches)
        return loop.fit(batches, experiment.validator(strategy), resume=experiment.resume)

    def _batches(self, parts: Split, *, with_source: bool) -> TargetBatches:
        experiment, config, options = self.experiment, self.experiment.config, self.experiment.config.finetune
        source = None
        if with_source:
            latest, size = config.pretrain.windows == "latest", options.source_batch_size
            users = with_next_item(experiment.dataset)
            source = SourceWindows(experiment.dataset, users, size, config.data.max_length, latest_only=latest)
        return TargetBatches(
            experiment.dataset,
            parts.train,
            options.batch_size,
            config.data.max_length,
            options.num_negatives if config.run.task == "items" else 0,
            options.batching,
            source,
        )

    def _pretrain_seconds(self) -> float:
        """Return what pre-training the base took, also where it was reused; 0 without a base."""
        return 0.0 if self.base is None else read_metrics(self.base).get("seconds", {}).get("pretrain", 0.0)


def _begin(trackers: list[Tracker], stage: str, history: Sequence[Mapping[str, float]]) -> None:
    for tracker in trackers:
        tracker.go_on(stage, history)


def _tell(trackers: list[Tracker], stage: str, record: Mapping[str, float]) -> None:
    for tracker in trackers:
        tracker.record(stage, record)


def _close_folder(folder: Path, metrics: dict[str, Any], fitted: Fitted, trackers: list[Tracker]) -> None:
    """Write history and metrics, and tell the trackers."""
    columns = {key: np.array([record[key] for record in fitted.history]) for key in fitted.history[0]}
    write_table(folder / "history.parquet", columns)
    for tracker in trackers:
        tracker.finish(metrics)
    finish_folder(folder, metrics)
