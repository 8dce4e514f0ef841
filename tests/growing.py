"""What the tests of merging and growing share: two datasets, one of which has more of everything, and runs on them."""

from pathlib import Path

import torch

from finetune_kit.config import Config, resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.preparation import preparing
from finetune_kit.data.prepare import write_dataset
from finetune_kit.plugins import installed
from finetune_kit.seeding import generator
from finetune_kit.training.assemble import Run, build_backbone, build_strategy, load_base
from finetune_kit.training.folders import write_base
from finetune_kit.training.pretrain import NextItem
from matrix import usual_backbone

SMALL, LARGE = ("b", "c", "d", "e", "f"), ("a", "c", "d", "dd", "e", "f", "g")
"""Source items: one is gone, three are new, and those that stay have other ids."""
FEW, MANY = ("p", "q", "r"), ("o", "p", "q", "r")


def make(folder: Path, source: tuple[str, ...], target: tuple[str, ...], users: int, first: int = 0) -> Dataset:
    """Prepare a dataset: user u begins with source item u and goes on around the catalogue, twice; so in the target."""
    steps = {"source": (source, 2 * len(source)), "target": (target, 2)}
    with preparing(folder) as preparation:
        for table, (items, length) in steps.items():
            preparation.connection.execute(
                f"""CREATE TABLE {table} AS SELECT printf('u%03d', u) AS user,
                {list(items)}[1 + (u + step) % {len(items)}] AS item, step::BIGINT AS time, 0 AS tie
                FROM range({first}, {first + users}) a(u), range({length}) b(step)"""
            )
        preparation.connection.execute(
            f"""CREATE TABLE labels AS SELECT printf('u%03d', u) AS user,
            {list(target)}[1 + u % {len(target)}] || '-kind' AS kind FROM range({first}, {first + users}) a(u)"""
        )
        write_dataset(preparation, options={}, inputs=[])
    return Dataset.open(folder)


def configured(name: str, /, **sections: dict[str, object]) -> Config:
    config: dict[str, dict[str, object]] = {
        "run": {"strategy": name, "backbone": usual_backbone(name)},
        "data": {"max_length": 6},
        "backbone": {"dim": 4, "num_blocks": 2},
        "pretrain": {"epochs": 1},
        "finetune": {"epochs": 1, "learning_rate": 0.01},
    }
    for section, options in sections.items():
        config[section] = {**config.get(section, {}), **options}
    return resolve_config(config)


def made_base(folder: Path, config: Config, dataset: Dataset) -> Path:
    """Write a pre-trained backbone that was never trained."""
    model = NextItem(build_backbone(config, dataset.num_source_items))
    write_base(folder, config, dataset, model.state_dict(), {"seconds": {"pretrain": 0.0}})
    return folder


def made_run(root: Path, config: Config, dataset: Dataset) -> tuple[Run, Path | None]:
    """Return a run whose weights were drawn in place of trained, and its base."""
    needs_base = installed().component("strategy", config.run.strategy).load().needs_pretrained
    base = made_base(root / "base", config, dataset) if needs_base else None
    weights = None if base is None else load_base(base, config, dataset)
    strategy = build_strategy(config, dataset.num_source_items, dataset.num_target_items, weights)
    noise = generator(1)
    drawn = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=noise) if tensor.is_floating_point() else tensor
        for name, tensor in strategy.trained_state().items()
    }
    strategy.load_trained_state(drawn)
    (root / "run").mkdir(parents=True)
    return Run(root / "run", config, {"hash": "0" * 64, "base": None}, dataset, strategy.eval()), base
