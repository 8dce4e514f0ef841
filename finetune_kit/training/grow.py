"""Go on with a run, or begin from a pre-trained backbone, on a dataset that has more (or other) items.

Items are known again by their raw ids. Rows of known items keep their values in every tensor that is indexed by items,
those of new items are as fresh as the strategy and the backbone make them (`finetune_kit.training.rows`). Whether the
grown model computes for known items what the run computes is tried out before anything is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from finetune_kit.checkpoint import load_model, read_facts, refuse_other
from finetune_kit.config import Config, read_run
from finetune_kit.data.earlier import SPLIT, Earlier
from finetune_kit.data.labelled import for_task
from finetune_kit.data.matched import Matched
from finetune_kit.errors import CheckpointError, DataError
from finetune_kit.files import read_metrics
from finetune_kit.processes import here
from finetune_kit.progress import Progress
from finetune_kit.seeding import derive_seed
from finetune_kit.strategy import Strategy
from finetune_kit.training.assemble import Run, backbone_facts, build_backbone, build_strategy, load_base
from finetune_kit.training.folders import base_made_once, write_base
from finetune_kit.training.merge import TOLERANCE, made_up_users, users_only
from finetune_kit.training.pretrain import NextItem
from finetune_kit.training.rows import Domain, Shapes, carry_over, find_axes
from finetune_kit.training.stages import Start
from finetune_kit.tryout import relative_difference

if TYPE_CHECKING:
    from finetune_kit.data.dataset import Dataset


@dataclass(frozen=True)
class Growth:
    """From one dataset to another, for one configuration.

    Args:
        config: What is trained on the new dataset.
        old: The dataset that weights were trained on.
        new: The dataset to go on with.
        progress: Who is told.
    """

    config: Config
    old: Dataset
    new: Dataset
    progress: Progress = dataclasses.field(default_factory=Progress)

    @cached_property
    def source(self) -> Matched:
        """The source items, old and new."""
        return Matched.of(self.old.raw_source_items(), self.new.raw_source_items())

    @cached_property
    def target(self) -> Matched:
        """The target items as the configuration's task sees them, old and new: for a label, its classes."""
        old, new = (for_task(dataset, self.config.run.task) for dataset in (self.old, self.new))
        return Matched.of(old.raw_target_items(), new.raw_target_items())

    def refuse_strangers(self, *, with_target: bool) -> None:
        """Tell what is known, new and gone; raise where nothing is known.

        Args:
            with_target: Whether the head goes on too.

        Raises:
            DataError: When the datasets have no source item in common, or none of the target.
        """
        told: dict[str, Matched] = {"source items": self.source}
        if with_target:
            told["target items" if self.config.run.task == "items" else "classes"] = self.target
        self.progress.say("; ".join(f"{what}: {matched}" for what, matched in told.items()))
        for what, matched in told.items():
            if not matched.num_known:
                raise DataError(
                    f"{self.new.path} and {self.old.path} have no {what} in common: items are known again by the raw "
                    "ids of the files that they were prepared from; train anew with `ftkit run`"
                )

    def grow_base(self, base: Path, root: Path) -> Path:
        """Return the folder of a pre-trained backbone for the new source items, below ``root``.

        It is ``base`` itself where the source items are the same and no target instances, which have other ids now,
        are in its weights. It is made only if it is not there yet.

        Args:
            base: The backbone's folder.
            root: Where the grown one gets its own.

        Raises:
            CheckpointError: When the backbone's weights don't belong to the old dataset, or can't grow.
        """
        if self.old.source_items_hash == self.new.source_items_hash and not (base / SPLIT).exists():
            return base
        return base_made_once(
            root,
            self.config,
            self.new,
            self._decides_grown(base),
            lambda folder: here().alone(lambda: self._write_grown(base, folder)),
            self.progress,
            kind="grown",
        )

    def _decides_grown(self, base: Path) -> list[Any]:
        """Return everything that decides what stands in a grown backbone's folder."""
        decides = [read_facts(base)["hash"], self.config.run.seed, backbone_facts(self.config, self.new)]
        if (base / SPLIT).exists():  # the parts of target instances, in the ids of the new dataset as a task sees it
            decides += [self.old.fingerprint, self.new.fingerprint, task_of(base)]
        return decides

    def _write_grown(self, base: Path, folder: Path) -> None:
        """Write a backbone with rows for the new source items, and the parts of target instances in its weights."""
        tensors, facts = load_model(base)
        refuse_other(facts, backbone_facts(self.config, self.old), base)
        fresh = _next_item(_other_seed(self.config), self.new.num_source_items).state_dict()
        axes = find_axes(self._base_shapes, self.source.num_old, 1)
        grown = carry_over(only(tensors, fresh.keys()), fresh, axes, {"source": self.source})
        was = read_metrics(base)
        metrics = {"seconds": {"pretrain": was.get("seconds", {}).get("pretrain", 0.0)}}
        about = {"grown_from": {"base": str(base.resolve()), "hash": facts["hash"], "source_items": str(self.source)}}
        if (earlier := earlier_parts(base, self.old, self.new)) is not None:
            folder.mkdir(parents=True, exist_ok=True)
            earlier.write(folder, SPLIT)
        # the task is that of the target instances in the weights, if there are any
        run = self.config.run.model_copy(update={"task": task_of(base)})
        write_base(folder, dataclasses.replace(self.config, run=run), self.new, grown, metrics, {"about": about})

    def grow_run(self, run: Run, base: Path | None) -> Start:
        """Return the weights of a run for the new items.

        Args:
            run: The run, loaded on the old dataset.
            base: Its pre-trained backbone, grown; None where it had none.

        Raises:
            CheckpointError: When a tensor can't grow, or the grown model computes something else for known items.
        """
        dataset = for_task(self.new, self.config.run.task)
        sizes = dataset.num_source_items, dataset.num_target_items
        weights = None if base is None else load_base(base, self.config, dataset)
        grown = build_strategy(self.config, *sizes, weights).eval()
        fresh = build_strategy(_other_seed(self.config), *sizes, weights)
        old = run.strategy.state_dict()
        trained = run.strategy.trained_state().keys()
        axes = find_axes(_shapes_of(run), self.source.num_old, self.target.num_old)
        matched: dict[Domain, Matched] = {"source": self.source, "target": self.target}
        state = {**grown.state_dict(), **only(fresh.state_dict(), trained)}
        everything = carry_over(old, state, axes, matched)
        _refuse_other_frozen(everything, grown, trained)
        grown.load_trained_state(only(everything, trained))
        self._refuse_difference(run.strategy, grown)
        num_new = self.source.num_new - self.source.num_known
        if num_new and not grown.backbone.item_embedding.weight.requires_grad:
            self.progress.say(
                f"warning: {self.config.run.strategy} does not train the item embedding: the {num_new:,} new source "
                "items keep random ones; pre-train anew to learn them"
            )
        about = {"grown_from": {"run": str(run.folder.resolve()), "hash": run.facts["hash"]}}
        return Start(only(everything, trained), run.facts["hash"], about)

    def _base_shapes(self, num_source: int, num_target: int) -> Shapes:
        return _shapes(_next_item(self.config, num_source))

    @torch.no_grad()
    def _refuse_difference(self, old: Strategy, grown: Strategy) -> None:
        """Raise if made-up users of known items get other scores for known items."""
        if not old.is_deterministic:
            return
        users = made_up_users(self.source.num_known, self.config.data.max_length)
        index = users.sequence.numpy()
        sides = [(old, self.source.old, self.target.old), (grown, self.source.new, self.target.new)]
        scores = []
        for strategy, source, target in sides:
            ids = np.concatenate([[0], source + 1])[index]  # (users, length)
            vectors = strategy.encode(users_only(users.user, torch.from_numpy(ids))).vectors
            scores.append(strategy.task.scores(vectors)[:, torch.from_numpy(target)])
        if (difference := relative_difference(*scores)) > TOLERANCE:
            raise CheckpointError(
                f"grown, {self.config.run.strategy!r} computes something else for known items: scores differ by "
                f"{difference:.2g} of the largest; it can't go on with other items, or not with other options"
            )


def task_of(folder: Path) -> str:
    """Return the task of the run, or of the run behind the weights, that stands in a folder."""
    return read_run(folder)["run"].get("task", "items")


def earlier_parts(folder: Path, old: Dataset, new: Dataset) -> Earlier | None:
    """Return which part target instances had where a folder's weights were trained; None where none were.

    Args:
        folder: A run, or a backbone: one that a run was merged into has the run's target instances in its weights.
        old: The dataset that the weights were trained on.
        new: The dataset in whose ids the instances are wanted.
    """
    if not (folder / SPLIT).exists():
        return None
    return Earlier.of(folder, *(for_task(dataset, task_of(folder)) for dataset in (old, new)))


def _refuse_other_frozen(everything: Mapping[str, Tensor], grown: Strategy, trained: Collection[str]) -> None:
    """Raise if a frozen tensor that no folder keeps, e.g. one drawn from the seed, would be another one when loaded."""
    own = grown.state_dict()
    for name, tensor in everything.items():
        if name not in trained and not torch.equal(tensor, own[name]):
            raise CheckpointError(
                f"{name!r} is neither trained nor of the pre-trained backbone, and another one for another number of "
                "items; this strategy can't go on with more of them"
            )


def _next_item(config: Config, num_source: int) -> NextItem:
    return NextItem(build_backbone(config, num_source))


def _shapes_of(run: Run) -> Callable[[int, int], Shapes]:
    return lambda num_source, num_target: _shapes(build_strategy(run.config, num_source, num_target, None))


def _shapes(model: torch.nn.Module) -> Shapes:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def only(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors of some names."""
    return {name: tensor for name, tensor in state.items() if name in names}


def _other_seed(config: Config) -> Config:
    """Return the configuration with a seed of its own for what is new: no new item starts where another one did."""
    seed = derive_seed(config.run.seed, "grow")
    return dataclasses.replace(config, run=config.run.model_copy(update={"seed": seed}))
