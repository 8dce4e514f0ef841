"""Whole runs: pre-train once, fine-tune, measure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_kit import __version__
from finetune_kit.errors import OptionError
from finetune_kit.idle import idle_options
from finetune_kit.plugins import installed
from finetune_kit.processes import here
from finetune_kit.sections import Deterministic
from finetune_kit.strategy import Strategy
from finetune_kit.tables import trained_tables
from finetune_kit.training.assemble import backbone_facts
from finetune_kit.training.experiment import Experiment
from finetune_kit.training.folders import base_folder, base_made_once
from finetune_kit.training.pretrain import with_next_item
from finetune_kit.training.stages import Finetuning, Pretraining, Start

LARGE_TABLE = 200_000
"""Rows of a table from which on it is told that Adam updates them all in every step."""


@dataclass
class Runner(Experiment):
    """Carries an experiment through; its arguments are those of `Experiment`."""

    def refuse_early(self) -> None:
        """Raise now what would otherwise be raised after pre-training: a split or a strategy that can't be made.

        Options that were set but have no effect are told, and large tables that Adam will update whole.
        """
        for remark in idle_options(self.config):
            self.progress.say(f"warning: {remark}")
        if self.config.run.tables == "divided" and here().size == 1:
            self.progress.say("warning: run.tables = divided has no effect: one process has nobody to divide them with")
        if here().mesh is not None and self.config.pretrain.loss == "softmax":
            raise OptionError(
                "pretrain.loss = softmax takes all items in every step, which divided tables are there to avoid; set "
                "pretrain.loss=sampled-softmax, or run.tables=whole"
            )
        if self.config.run.devices > 1 and here().size == 1:
            self.progress.say(
                f"warning: run.devices = {self.config.run.devices} has no effect here: `ftkit run`, `pretrain` and "
                "`finetune` alone start processes that train together"
            )
        _ = self.split
        strategy = self.build_strategy(None)
        if here().mesh is not None and strategy.keeps_copies:
            raise OptionError(
                f"{self.config.run.strategy} keeps copies of whole item tables, so they can't be divided; set "
                "run.tables=whole"
            )
        for stage, rows in self._tables_updated_whole(strategy):
            self.progress.say(
                f"{stage}.optimizer = adam updates all {rows:,} rows of a table in every step; lazy-adam only those "
                f"that the step looks up (ftkit options {stage})"
            )
        if strategy.needs_pretrained or strategy.needs_source_batches:
            with_next_item(self.dataset)

    @property
    def needs_base(self) -> bool:
        """Whether the strategy starts from a pre-trained backbone."""
        return installed().component("strategy", self.config.run.strategy).load().needs_pretrained

    def pretrained_folder(self, root: Path) -> Path:
        """Return where below ``root`` the pre-trained backbone stands, or will stand."""
        return base_folder(root, self.config, self.dataset, self._decides_pretrained())

    def pretrain(self, root: Path) -> Path:
        """Return the folder of the pre-trained backbone below ``root``; it is made only if it is not there yet."""
        return base_made_once(
            root,
            self.config,
            self.dataset,
            self._decides_pretrained(),
            self._pretrain_into,
            self.progress,
        )

    def finetune(self, folder: Path, base: Path | None, start: Start | None = None) -> dict[str, Any]:
        """Fine-tune from a pre-trained base, measure, write the run folder; return its metrics.

        Args:
            folder: The run's folder.
            base: The pre-trained backbone's folder; None for strategies that need none.
            start: Weights of an earlier run to go on from; None begins with what the strategy builds.
        """
        with self.deterministically():
            return Finetuning(self, folder, base, start).carry_out()

    def _pretrain_into(self, folder: Path) -> None:
        with self.deterministically():
            Pretraining(self, folder).carry_out()

    def _tables_updated_whole(self, strategy: Strategy) -> Iterator[tuple[str, int]]:
        """Yield the stages in which Adam updates a large table where lazy-adam could be chosen, and its rows."""
        config = self.config
        if strategy.needs_pretrained and config.pretrain.optimizer == "adam":
            yield from _if_large("pretrain", self.dataset.num_source_items)
        if config.finetune.optimizer == "adam" and not config.finetune.weight_decay:
            sizes = [len(table.weight) for table in trained_tables(strategy)]
            yield from _if_large("finetune", max(sizes, default=0))

    def _decides_pretrained(self) -> dict[str, Any]:
        """Return everything that decides a pre-trained backbone."""
        return {
            "dataset": self.dataset.fingerprint,
            "pretrain": self.config.pretrain.model_dump(mode="json"),
            "precision": self.config.run.precision,
            **({"compile": True} if self.config.run.compile else {}),  # it rounds otherwise
            **_told_deterministic(self.config.run.deterministic),
            "seed": self.config.run.seed,
            "version": __version__,
            "code": installed().component("backbone", self.config.run.backbone).code_hash(),
            **backbone_facts(self.config, self.dataset),
        }


def _told_deterministic(wanted: Deterministic) -> dict[str, bool]:
    return {} if wanted == "auto" else {"deterministic": wanted == "true"}


def _if_large(stage: str, rows: int) -> Iterator[tuple[str, int]]:
    if rows >= LARGE_TABLE:
        yield stage, rows
