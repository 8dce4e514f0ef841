"""What training gives, in one process and in several: ``python checks.py FOLDER NAME…`` in each of a job.

The first writes one file per check, `test_steps.py` compares.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from finetune_kit.backbone import Backbone
from finetune_kit.config import resolve_config
from finetune_kit.data.batch import Batch
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.loading import SourceWindows
from finetune_kit.files import write_tensors
from finetune_kit.plugins import installed
from finetune_kit.processes import here, leave, started_job
from finetune_kit.seeding import seeded
from finetune_kit.tables import gradients_by_row
from finetune_kit.testing import StrategyContract, installed_backbone, random_batch, random_windows
from finetune_kit.trainable import Trainable
from finetune_kit.training.device import make_fabric
from finetune_kit.training.experiment import Experiment
from finetune_kit.training.measure import measure
from finetune_kit.training.optimizer import make_optimizer
from finetune_kit.training.pretrain import NextItem
from finetune_kit.training.stages import Pretraining
from finetune_kit.training.step import Step
from ftkit_datasets.synthetic import Synthetic, SyntheticOptions

sys.path.insert(0, str(Path(__file__).parent.parent))
from matrix import usual_backbone

OPTIONS: dict[str, dict[str, Any]] = {
    "uaf-hard": {"information_weight": 0.5, "usage_weight": 0.5},
    "uaf-rl": {"curriculum_epochs": 0, "information_weight": 0.5},
    "spottune": {"k": 1},
}
"""Options by which a loss is no mean over instances, and draws are made."""
NUM_ITEMS, NUM_TARGET_ITEMS, LENGTH = 20, 9, 7
USERS = (6, 7, 1, 3)
"""Users of the steps' batches: a number that divides, some that don't, and fewer than there are processes."""

State = dict[str, Tensor]


def backbone_of(strategy: str) -> type[Backbone]:
    name = usual_backbone(strategy)
    return installed_backbone(name, dim=8, num_blocks=2, **({"dropout": 0.0} if name == "sasrec" else {}))


def make_strategy(name: str, **options: Any) -> Trainable:
    attributes = {"strategy": name, **installed().component("strategy", name).contract}
    attributes["options"] = {**attributes.get("options", {}), **OPTIONS.get(name, {}), **options}
    contract = type("TestOne", (StrategyContract,), attributes)
    return contract().make_strategy(backbone_of(name))


def target_batches(name: str) -> Iterator[Batch]:
    windows = 5 if installed().component("strategy", name).load().needs_source_batches else 0
    for step, users in enumerate(USERS):
        batch = random_batch(users, LENGTH, NUM_ITEMS, NUM_TARGET_ITEMS, num_windows=windows, seed=step)
        yield replace(batch, user=batch.user + step * 10**6)


def trained(
    module: Trainable, batches: Iterator[Any], fabric: Fabric, *, optimizer: str = "adam", accumulate: int = 1
) -> State:
    """Return weights after a step on each batch, two an epoch, and the losses."""
    parameters = [parameter for parameter in module.parameters() if module.trains(parameter)]
    is_lazy = optimizer == "lazy-adam"
    adam = make_optimizer(optimizer, parameters, 1e-2, 0.0, fabric.device)  # type: ignore[arg-type]
    rounding = 1e-2 if fabric.strategy.precision.precision == "bf16-mixed" else 1e-4
    adam.param_groups[0]["eps"] = rounding  # else it decides where a gradient is nothing but that
    step = Step(module, adam, fabric, accumulate=accumulate, by_row=is_lazy)
    losses = []
    with gradients_by_row(module, is_lazy):
        for n, batch in enumerate(batches):
            if n % 2 == 0:
                module.start_epoch(n // 2 + 1)
                module.train()
            losses.append(step.gradients(batch))
            step.optimizer.step()
            for parameter in module.parameters():
                parameter.grad = None
    state = {name: tensor.clone() for name, tensor in module.trained_state().items()}
    return {**state, "losses": torch.stack(losses)}


def pretrained(name: str, fabric: Fabric, num_negatives: int = 0, **settings: Any) -> State:
    with seeded(0, "checks"):
        options = {"dropout": 0.0} if name != "nextitnet" else {}
        backbone = installed_backbone(name, dim=8, num_blocks=2, **options)(NUM_ITEMS, LENGTH)
        module = NextItem(backbone, torch.arange(1.0, NUM_ITEMS + 1), num_negatives)
    batches = (random_windows(users, LENGTH, NUM_ITEMS, seed=step) for step, users in enumerate(USERS))
    return trained(module, batches, fabric, **settings)


def one_branch(fabric: Fabric) -> State:
    """Return the weights after steps in which the first process's users are frozen, and those of the last are tuned."""
    module = make_strategy("uaf-random")
    users = torch.arange(1, 400)
    with torch.no_grad():
        gates = module.encode(replace(random_batch(399, LENGTH, NUM_ITEMS, NUM_TARGET_ITEMS), user=users)).gates
    assert gates is not None
    frozen, tuned = users[gates.sum(dim=1) == 0][:6], users[gates.sum(dim=1) == 2][:6]
    assert len(frozen) == len(tuned) == 6, "with some seed nobody has one branch in all blocks"
    batches = []
    for step in range(3):
        batch = random_batch(4, LENGTH, NUM_ITEMS, NUM_TARGET_ITEMS, seed=step)
        batches.append(replace(batch, user=torch.cat([frozen[2 * step :][:2], tuned[2 * step :][:2]])))
    return trained(module, iter(batches), fabric)


def resting_at_first(fabric: Fabric) -> State:
    """Return the weights of a strategy most of which rests before the first step, and trains later."""
    module = make_strategy("gradual-unfreezing")
    module.start_epoch(1)
    return trained(module, target_batches("gradual-unfreezing"), fabric)


def measured(folder: Path, task: str) -> State:
    """Return everything that is measured of a strategy, in batches that two processes can't share evenly."""
    path = folder / "made-up"
    here().alone(lambda: path.exists() or Synthetic(SyntheticOptions(users=60, max_length=12)).prepare(path))
    sections = {
        "run": {"strategy": "uaf-soft", "task": task},
        "data": {"max_length": 8},
        "backbone": {"dim": 8, "num_blocks": 2},
        "evaluation": {"batch_size": 20, "references": ["popularity", "user-knn"]},
    }
    experiment = Experiment(resolve_config(sections), Dataset.open(path), make_fabric("cpu", "32", started_job()))
    strategy = experiment.build_strategy(None)
    found = measure(experiment, strategy)
    text = json.dumps(found.metrics, sort_keys=True).encode()
    columns = {f"{table}.{name}": column for table, own in found.tables.items() for name, column in own.items()}
    numbers = {name: torch.from_numpy(column) for name, column in columns.items() if column.dtype != object}
    return {**numbers, "metrics": torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def held_out(folder: Path) -> State:
    """Return the held-out loss of a backbone, in three batches."""
    dataset = Dataset.open(folder / "made-up")
    sections = {"data": {"max_length": 8}, "backbone": {"dim": 8, "num_blocks": 2}, "pretrain": {"batch_size": 8}}
    experiment = Experiment(resolve_config(sections), dataset, make_fabric("cpu", "32", started_job()))
    stage = Pretraining(experiment, folder)
    windows = SourceWindows(dataset, np.arange(1, 21), 8, 8, latest_only=True)
    return {"loss": torch.tensor(stage._held_out_loss(stage._model(), windows), dtype=torch.float64)}


def checks(folder: Path) -> dict[str, Callable[[], State]]:
    """Return what is computed, by name; files may be made in a folder."""
    plain, half = make_fabric("cpu", "32", started_job()), make_fabric("cpu", "bf16-mixed", started_job())

    def steps(name: str, fabric: Fabric = plain, **settings: Any) -> Callable[[], State]:
        return lambda: trained(make_strategy(name), target_batches(name), fabric, **settings)

    found = {name: steps(name) for name in installed().components("strategy")}
    found |= {f"{name} lazy": steps(name, optimizer="lazy-adam") for name in ("finetune-all", "uaf-hard", "mtl")}
    found |= {f"{name} bf16": steps(name, half) for name in ("finetune-all", "uaf-hard")}
    found |= {f"{name} accumulated": steps(name, accumulate=2) for name in ("finetune-all", "gradual-unfreezing")}
    found["finetune-all lazy accumulated"] = steps("finetune-all", optimizer="lazy-adam", accumulate=2)
    found["one branch"] = lambda: one_branch(plain)
    found["resting at first"] = lambda: resting_at_first(plain)
    found["pretrain"] = lambda: pretrained("nextitnet", plain)
    found["pretrain accumulated"] = lambda: pretrained("nextitnet", plain, accumulate=3)
    found["pretrain sampled"] = lambda: pretrained("sasrec", plain, 8)
    found["pretrain sampled lazy"] = lambda: pretrained("sasrec", plain, 8, optimizer="lazy-adam")
    found["pretrain hidden items"] = lambda: pretrained("bert4rec", plain)
    found["exactly: measured"] = lambda: measured(folder, "items")
    found["exactly: measured label"] = lambda: measured(folder, "label:kind")
    found["exactly: held-out loss"] = lambda: held_out(folder)
    return found


def main(folder: Path, names: list[str]) -> None:
    for name in names:
        state = checks(folder)[name]()
        if here().is_first:
            write_tensors(folder / f"{name}.safetensors", state)
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
