"""What training gives where processes divide item tables: ``python divided_checks.py FOLDER`` in each of a job.

The first writes one file per check, `test_division.py` compares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from checks import (
    LENGTH,
    NUM_ITEMS,
    NUM_TARGET_ITEMS,
    USERS,
    State,
    make_strategy,
    target_batches,
    trained,
)
from lightning_fabric import Fabric

from finetune_kit.division import divide_tables
from finetune_kit.files import write_tensors
from finetune_kit.plugins import installed
from finetune_kit.processes import here, leave, started_job
from finetune_kit.seeding import seeded
from finetune_kit.testing import installed_backbone, random_windows
from finetune_kit.trainable import Trainable
from finetune_kit.training.device import make_fabric
from finetune_kit.training.pretrain import NextItem


def state_after(module: Trainable, batches: Iterator[Any], fabric: Fabric, **settings: Any) -> State:
    """Return whole weights and losses after some steps, and what is computed with them."""
    if here().mesh is not None:
        module.division = divide_tables(module, (NUM_ITEMS, NUM_TARGET_ITEMS), here().mesh)
    losses = trained(module, batches, fabric, **settings)["losses"]
    counted = torch.tensor(module.num_parameters())
    return {**module.whole_state(), "losses": losses, "counted": counted, "told": told(module.eval())}


@torch.no_grad()
def told(module: Trainable) -> torch.Tensor:
    """Return the scores of all target items for some users, or the exact loss on some windows."""
    if isinstance(module, NextItem):
        return module(random_windows(5, LENGTH, NUM_ITEMS, seed=99))
    batch = next(target_batches("mtl"))
    return module.task.scores(module.encode(batch).vectors)


def pretrained(name: str, fabric: Fabric, **settings: Any) -> State:
    with seeded(0, "checks"):
        options = {"dropout": 0.0} if name not in ("nextitnet", "transformers") else {}
        backbone = installed_backbone(name, dim=8, num_blocks=2, **options)(NUM_ITEMS, LENGTH)
        module = NextItem(backbone, torch.arange(1.0, NUM_ITEMS + 1), 8)
    batches = (random_windows(users, LENGTH, NUM_ITEMS, seed=step) for step, users in enumerate(USERS))
    return state_after(module, batches, fabric, **settings)


def checks() -> dict[str, Callable[[], State]]:
    plain, half = (make_fabric("cpu", kind, started_job(), divided=True) for kind in ("32", "bf16-mixed"))

    def steps(name: str, fabric: Fabric = plain, **settings: Any) -> Callable[[], State]:
        return lambda: state_after(make_strategy(name), target_batches(name), fabric, **settings)

    strategies = installed().components("strategy")
    found = {name: steps(name) for name, one in strategies.items() if not one.load().keeps_copies}
    found |= {f"{name} lazy": steps(name, optimizer="lazy-adam") for name in ("finetune-all", "uaf-hard")}
    found["uaf-hard bf16"] = steps("uaf-hard", half)
    found["uaf-hard accumulated"] = steps("uaf-hard", accumulate=2)
    for name in ("nextitnet", "sasrec", "gru4rec", "bert4rec"):
        found[f"pretrain {name}"] = lambda name=name: pretrained(name, plain)
    found["pretrain lazy"] = lambda: pretrained("nextitnet", plain, optimizer="lazy-adam")
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
