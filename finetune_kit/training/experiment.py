"""What the stages of a run share: configuration, dataset, device, split, and how a run folder is begun."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from lightning_fabric import Fabric

from finetune_kit.config import Config, deciding_options
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.earlier import PARTS, Earlier
from finetune_kit.data.labelled import LabelledDataset, for_task
from finetune_kit.data.split import Split, num_repeated, split, unseen_in_training
from finetune_kit.division import divide_tables
from finetune_kit.errors import DataError
from finetune_kit.evaluation.candidates import Candidates
from finetune_kit.evaluation.evaluate import Encoder, Evaluator
from finetune_kit.evaluation.labels import LabelEvaluator
from finetune_kit.memory import enough_memory
from finetune_kit.plugins import installed
from finetune_kit.processes import here
from finetune_kit.progress import Progress
from finetune_kit.strategy import Strategy
from finetune_kit.tracker import Tracker
from finetune_kit.trainable import Trainable
from finetune_kit.training.assemble import build_strategy, load_base
from finetune_kit.training.determinism import deterministically
from finetune_kit.training.folders import write_config

T = TypeVar("T", bound=Trainable)

EVALUATE_LESS = "lower evaluation.batch_size or data.max_length"
"""What to do when memory runs out while a model is measured."""


@dataclass
class Experiment:
    """One configuration on one dataset: its split, what measures on it, its strategy, its folders.

    Args:
        config: Everything resolved.
        dataset: The dataset; its target becomes what ``run.task`` asks for.
        fabric: Device and precision.
        progress: Who is told.
        resume: Go on from what an interrupted run left behind.
        earlier: Parts that instances had when the weights that it starts from were trained; they keep them.
        candidates: What the sampled protocol ranks validation and test instances among; None draws them.
        watchers: Trackers beside those of the configuration, told of fine-tuning's epochs alone.
    """

    config: Config
    dataset: Dataset
    fabric: Fabric
    progress: Progress = field(default_factory=Progress)
    resume: bool = False
    earlier: Earlier | None = None
    candidates: Candidates | None = None
    watchers: Sequence[Tracker] = ()

    def __post_init__(self) -> None:
        """See the dataset as the task does."""
        self.dataset = for_task(self.dataset, self.config.run.task)

    @cached_property
    def split(self) -> Split:
        """The parts of the target instances; those with an item unseen in training treated as asked.

        Raises:
            DataError: When there are such instances and ``data.unseen`` is ``refuse``.
        """
        options, target = self.config.data, self.dataset.target
        if not len(target.user):
            raise DataError(f"{self.dataset.path} has no target events, only labels; learn one with --task label:NAME")
        if self.dataset.num_target_items < 2:
            raise DataError(f"{self.dataset.path} has one target item; ranking needs at least two")
        if repeated := num_repeated(target.user, target.item):
            raise DataError(
                f"{self.dataset.path} has {repeated} target events that repeat a pair of user and item, so that tests "
                "would ask for what was trained on; prepare it with each pair once"
            )
        parts = split(target.user, options.split, self.config.run.seed, options.fraction)
        if self.earlier is not None:
            parts = self.earlier.keep(parts, target.user, target.item, options.split)
            if empty := [name for name in PARTS if not len(getattr(parts, name))]:
                raise DataError(
                    f"{self.dataset.path} has no {empty[0]} instance: those that had a part before keep it, and none "
                    "of the others fell into that one; give a dataset with more new target events"
                )
        unseen = {name: unseen_in_training(target.item, parts, getattr(parts, name)) for name in ("valid", "test")}
        counts = " and ".join(f"{mask.sum()} of {len(mask)} {name} instances" for name, mask in unseen.items())
        if options.split == "authors":
            self.progress.say(
                "warning: data.split=authors chooses the best epoch on the test part, as the authors' code does; "
                "its numbers are too good"
            )
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
        return Split(parts.train, parts.known, parts.valid[~unseen["valid"]], parts.test[~unseen["test"]])

    def build_strategy(self, base: Path | None) -> Strategy:
        """Return the strategy, on the CPU, over a pre-trained base."""
        weights = None if base is None else load_base(base, self.config, self.dataset)
        return build_strategy(self.config, self.dataset.num_source_items, self.dataset.num_target_items, weights)

    def divided(self, build: Callable[[], T]) -> T:
        """Return what is built on the CPU; where processes divide item tables, with its columns of them alone.

        They then build in turns: memory holds the whole tables of one of them.
        """
        processes, dataset = here(), self.dataset
        if processes.mesh is None:
            return build()

        def build_and_divide() -> T:
            module = build()
            num_items = dataset.num_source_items, dataset.num_target_items
            module.division = divide_tables(module, num_items, processes.mesh)
            return module

        return processes.in_turns(build_and_divide)

    def evaluator(self, instances: np.ndarray) -> Evaluator | LabelEvaluator:
        """Return what measures on given instances: ranks of items, or predictions of a profile label."""
        options, max_length = self.config.evaluation, self.config.data.max_length
        if isinstance(self.dataset, LabelledDataset):
            return LabelEvaluator(self.dataset, instances, options.batch_size, max_length)
        known, seed = self.split.known, self.config.run.seed
        return Evaluator(self.dataset, instances, known, options, max_length, seed, self.candidates)

    def deterministically(self) -> AbstractContextManager[None]:
        """Return within what is computed by deterministic algorithms alone, where ``run.deterministic`` says so."""
        return deterministically(self.fabric.device, self.config.run.deterministic)

    @property
    def monitor(self) -> str:
        """The metric that chooses the best epoch on validation, as in the paper."""
        return "mrr@5" if self.config.run.task == "items" else "f1_macro"

    def validator(self, strategy: Encoder) -> Callable[[], dict[str, float]]:
        """Return a function that measures a strategy on the validation part: metrics, `monitor` among them.

        Items are ranked by the first of ``evaluation.protocols`` alone.
        """
        evaluator = self.evaluator(self.split.valid)
        measuring = enough_memory("validation", EVALUATE_LESS)
        if isinstance(evaluator, LabelEvaluator):
            return measuring(lambda: evaluator.evaluate(strategy, self.fabric).metrics())
        protocol = self.config.evaluation.protocols[0]
        cutoffs = tuple(dict.fromkeys((5, *self.config.evaluation.cutoffs)))
        return measuring(lambda: evaluator.evaluate(strategy, self.fabric, (protocol,)).metrics(cutoffs)[protocol])

    def bound_to(self, sections: Iterable[str]) -> dict[str, Any]:
        """Return what an interrupted training belongs to: nothing else goes on with it, as its numbers would differ.

        Args:
            sections: Those of the configuration that decide it.
        """
        tables = {name: table for name, table in self.config.tables().items() if name in sections}
        options = deciding_options(tables)
        options.pop("run.device", None)  # "auto" is one device or another
        return {"dataset": self.dataset.fingerprint, "device": self.fabric.device.type, **options}

    def open_folder(self, folder: Path, sections: Iterable[str]) -> list[Tracker]:
        """Make a run folder, write the sections of the configuration that decide it, start its trackers.

        Of several processes, the first has the trackers.
        """
        tables = here().alone(partial(write_config, folder, self.config, self.dataset, tuple(sections)))
        if not here().is_first:
            return []
        trackers = [installed().component("tracker", name).load()(folder) for name in self.config.run.trackers]
        for tracker in trackers:
            tracker.start(tables)
        return trackers
