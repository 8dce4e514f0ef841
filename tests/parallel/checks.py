"""What training gives, computed alike in one process and in several: ``python checks.py FOLDER`` in each of a job.

The first writes one file per check, `test_steps.py` compares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from finetune_kit.backbone import Backbone
from finetune_kit.data.batch import Batch
from finetune_kit.files import write_tensors
from finetune_kit.plugins import installed
from finetune_kit.processes import here, leave, started_job
from finetune_kit.seeding import seeded
from finetune_kit.tables import gradients_by_row
from finetune_kit.testing import StrategyContract, installed_backbone, random_batch, random_windows
from finetune_kit.trainable import Trainable
from finetune_kit.training.device import make_fabric
from finetune_kit.training.optimizer import make_optimizer
from finetune_kit.training.pretrain import NextItem
from finetune_kit.training.step import Step

sys.path.insert(0, str(Path(__file__).parent.parent))
from matrix import usual_backbone  # noqa: E402

OPTIONS: dict[str, dict[str, Any]] = {
    "uaf-hard": {"information_weight": 0.5, "usage_weight": 0.5},
    "uaf-rl": {"curriculum_epochs": 0, "information_weight": 0.5},
    "spottune": {"k": 1},
}
"""Options by which a loss is no mean over instances, and draws are made."""
NUM_ITEMS, NUM_TARGET_ITEMS, LENGTH = 20, 9, 7
USERS = (6, 7, 1, 5, 2, 3)
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
    adam.param_groups[0]["eps"] = 1e-4  # else rounding decides where a gradient is nothing but that
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


def checks() -> dict[str, Callable[[], State]]:
    plain, half = make_fabric("cpu", "32", started_job()), make_fabric("cpu", "bf16-mixed", started_job())

    def steps(name: str, fabric: Fabric = plain, **settings: Any) -> Callable[[], State]:
        return lambda: trained(make_strategy(name), target_batches(name), fabric, **settings)

    found = {name: steps(name) for name in installed().components("strategy")}
    found |= {f"{name} lazy": steps(name, optimizer="lazy-adam") for name in ("finetune-all", "uaf-hard", "mtl")}
    found |= {f"{name} bf16": steps(name, half) for name in ("finetune-all", "uaf-hard")}
    found |= {f"{name} accumulated": steps(name, accumulate=2) for name in ("finetune-all", "gradual-unfreezing")}
    found["finetune-all lazy accumulated"] = steps("finetune-all", optimizer="lazy-adam", accumulate=2)
    found["one branch"] = lambda: one_branch(plain)
    found["pretrain"] = lambda: pretrained("nextitnet", plain)
    found["pretrain accumulated"] = lambda: pretrained("nextitnet", plain, accumulate=3)
    found["pretrain sampled"] = lambda: pretrained("sasrec", plain, 8)
    found["pretrain sampled lazy"] = lambda: pretrained("sasrec", plain, 8, optimizer="lazy-adam")
    found["pretrain hidden items"] = lambda: pretrained("bert4rec", plain)
    return found


def main(folder: Path) -> None:
    for name, check in checks().items():
        state = check()
        if here().is_first:
            write_tensors(folder / f"{name}.safetensors", state)
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
