"""Put a strategy together from a configuration, a dataset's sizes and a pre-trained base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from finetune_kit.backbone import Backbone
from finetune_kit.checkpoint import PRETRAINED, RUN, load_model, read_facts, read_shapes, refuse_other
from finetune_kit.config import SECTIONS, Config, read_run, resolve_config
from finetune_kit.data.labelled import for_task
from finetune_kit.errors import CheckpointError, FinetuneKitError, PluginError, one_line
from finetune_kit.memory import is_out_of_memory, out_of_memory
from finetune_kit.plugins import installed
from finetune_kit.sections import label_of
from finetune_kit.seeding import seeded
from finetune_kit.strategy import Strategy
from finetune_kit.task import ItemTask, LabelTask, Task
from finetune_kit.training.sizes import Shapes, refuse_other_shapes, refuse_too_large, shapes_of

if TYPE_CHECKING:
    from finetune_kit.data.dataset import Dataset

BACKBONE, TASK = "backbone.", "task."
"""How the names of a backbone's weights begin, and those of a head's."""


def build_backbone(config: Config, num_items: int) -> Backbone:
    """Return the configured backbone for ``num_items`` source items, freshly initialised from the seed.

    Raises:
        PluginError: When its class fails, e.g. for options that its model does not take.
    """
    name = config.run.backbone
    backbone = installed().component("backbone", name).load()
    refuse_too_large(lambda: backbone(num_items, config.data.max_length, config.backbone), f"the backbone {name!r}")
    with seeded(config.run.seed, "backbone"):
        try:
            return backbone(num_items, config.data.max_length, config.backbone)
        except FinetuneKitError:
            raise
        except Exception as error:  # a third party's code may raise anything
            if is_out_of_memory(error):
                raise out_of_memory(error, f"the backbone {name!r}", "lower its sizes or data.max_length") from error
            raise PluginError(
                f"{name!r} can't be built with backbone options {config.backbone}: {one_line(error, with_type=True)}; "
                "ftkit --traceback shows where"
            ) from error


class Plain(Strategy):
    """A backbone and a head, nothing else: what a merged run is."""

    needs_pretrained = False

    def build(self) -> None:
        """Add nothing."""


def build_strategy(
    config: Config,
    num_source_items: int,
    num_target_items: int,
    base: Mapping[str, Tensor] | None,
    kind: type[Strategy] | None = None,
) -> Strategy:
    """Return the configured strategy, or one of another kind that has no options.

    Args:
        config: Names it and its backbone, with their options.
        num_source_items: Items of the source domain.
        num_target_items: Items of the target domain, or classes.
        base: The backbone's pre-trained weights; None starts from a fresh one.
        kind: The class, instead of the configured one; its options are the defaults.
    """
    backbone = build_backbone(config, num_source_items)
    if base is not None:
        backbone.load_state_dict(base)
    strategy = kind or installed().component("strategy", config.run.strategy).load()
    options = config.strategy if kind is None else None
    with seeded(config.run.seed, "strategy"):
        task = _task(config, backbone.dim, num_target_items)
        try:
            built = strategy(backbone, task, options, pooling=config.finetune.pooling, seed=config.run.seed)
        except FinetuneKitError:
            raise
        except Exception as error:  # a third party's code may raise anything
            if is_out_of_memory(error):
                raise out_of_memory(error, f"{config.run.strategy!r}", "lower the sizes of its options") from error
            reason = one_line(error, with_type=True)
            raise PluginError(
                f"{config.run.strategy!r} failed in build: {reason}; ftkit --traceback shows where"
            ) from error
    if not any(map(built.trains, built.parameters())):
        raise PluginError(f"{config.run.strategy!r} trains nothing: its build froze every parameter")
    return built


def _task(config: Config, dim: int, num_answers: int) -> Task:
    if label_of(config.run.task) is None:
        return ItemTask(dim, num_answers, config.finetune.loss)
    return LabelTask(dim, num_answers)


def backbone_facts(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Return what weights of a pre-trained backbone are bound to."""
    return {
        "backbone": config.run.backbone,
        "backbone_options": config.backbone.model_dump(mode="json"),
        "max_length": config.data.max_length,
        "num_source_items": dataset.num_source_items,
        "source_items_hash": dataset.source_items_hash,
    }


def load_base(folder: Path, config: Config, dataset: Dataset) -> dict[str, Tensor]:
    """Return the weights of a pre-trained backbone, checked against configuration and vocabulary.

    Raises:
        CheckpointError: When they belong to another backbone, other options or other source items.
    """
    tensors, facts = load_model(folder)
    if facts["kind"] != PRETRAINED:
        raise CheckpointError(f"{str(folder)!r} holds a {facts['kind']}, not a pre-trained backbone")
    refuse_other(facts, backbone_facts(config, dataset), folder)
    weights = part_of(tensors, BACKBONE)
    _refuse_other_backbone(config, dataset, shapes_of(weights), folder)
    return weights


def refuse_other_base(folder: Path, config: Config, dataset: Dataset) -> None:
    """Raise if a pre-trained backbone is not that of a configuration and dataset; of its weights the header is read.

    Raises:
        CheckpointError: As `load_base` does.
    """
    facts, shapes = read_facts(folder), read_shapes(folder)
    refuse_other(facts, backbone_facts(config, dataset), folder)
    own = {name.removeprefix(BACKBONE): shape for name, shape in shapes.items() if name.startswith(BACKBONE)}
    _refuse_other_backbone(config, dataset, own, folder)


def _refuse_other_backbone(config: Config, dataset: Dataset, found: Shapes, where: Path) -> None:
    most = 4 * len(found) + 100  # a model of the weights' size makes no more on the way
    refuse_other_shapes(lambda: build_backbone(config, dataset.num_source_items).state_dict(), found, where, most)


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _whole_state(strategy: Strategy) -> dict[str, Tensor]:
    """Return the tensors of a merged run by the names that its file has."""
    parts = {BACKBONE: strategy.backbone, TASK: strategy.task}
    return {f"{prefix}{name}": tensor for prefix, part in parts.items() for name, tensor in part.state_dict().items()}


@dataclass(frozen=True)
class Run:
    """A finished run, or what it was merged into, loaded.

    Args:
        folder: Its folder.
        config: Its configuration.
        facts: What its weights are bound to.
        dataset: The dataset as its task sees it: for a profile label, the target is the label.
        strategy: The strategy with its weights, in evaluation mode, on the CPU.
    """

    folder: Path
    config: Config
    facts: Mapping[str, Any]
    dataset: Dataset
    strategy: Strategy


def load_run(folder: Path, dataset: Dataset, base: Path | None = None, options: Mapping[str, Any] | None = None) -> Run:
    """Return a finished run, checked against a dataset's vocabularies and its pre-trained base.

    Args:
        folder: Run folder, or that of a merged run.
        dataset: The dataset that it will be used on.
        base: The pre-trained backbone's folder, where it was moved; None takes the place that the run remembers.
        options: Options of the strategy that act in evaluation alone, instead of the run's.

    Raises:
        CheckpointError: When anything differs from what the run was trained on; both values are named.
    """
    tensors, facts = load_model(folder)
    if facts["kind"] != RUN and not is_merged(facts):
        raise CheckpointError(f"{str(folder)!r} holds a {facts['kind']}, not a fine-tuned run")
    sections = read_run(folder, SECTIONS)
    sections["strategy"] = {**sections["strategy"], **(options or {})}
    config = resolve_config(sections)
    dataset = for_task(dataset, config.run.task)
    refuse_other(facts, {**backbone_facts(config, dataset), **target_facts(dataset)}, folder)
    weights = None
    if facts["base"] is not None:
        base = folder / facts["base"]["path"] if base is None else base
        if not base.is_dir():
            raise CheckpointError(
                f"the base of {str(folder)!r} is no longer at {str(base)!r}; say with --base where it is"
            )
        found = read_facts(base)["hash"]
        if found != facts["base"]["hash"]:
            raise CheckpointError(
                f"{str(folder)!r} was fine-tuned from the base with hash {facts['base']['hash']}; "
                f"{str(base)!r} has {found}"
            )
        weights = load_base(base, config, dataset)
    sizes = dataset.num_source_items, dataset.num_target_items
    if is_merged(facts):
        refuse_other_shapes(
            lambda: _whole_state(build_strategy(config, *sizes, None, Plain)), shapes_of(tensors), folder
        )
        strategy: Strategy = build_strategy(config, *sizes, part_of(tensors, BACKBONE), Plain)
        strategy.task.load_state_dict(part_of(tensors, TASK))
    else:
        refuse_other_shapes(lambda: build_strategy(config, *sizes, None).trained_state(), shapes_of(tensors), folder)
        strategy = build_strategy(config, *sizes, weights)
        strategy.load_trained_state(tensors)
    return Run(folder, config, facts, dataset, strategy.eval())


def is_merged(facts: Mapping[str, Any]) -> bool:
    """Return whether weights are those of a run that was merged into a plain backbone, its head beside it."""
    return facts["kind"] == PRETRAINED and "target_items_hash" in facts


def target_facts(dataset: Dataset) -> dict[str, Any]:
    """Return what a head is bound to."""
    return {"num_target_items": dataset.num_target_items, "target_items_hash": dataset.target_items_hash}
