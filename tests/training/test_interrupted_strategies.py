"""Whatever is trained goes on from within an epoch to the same weights."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import runner, whole_run, without_times

from finetune_kit.data.dataset import Dataset
from finetune_kit.data.loading import SourceWindows, TargetBatches
from finetune_kit.plugins import installed

SAVE = {"save_minutes": 1e-9}


class Killed(Exception):
    """What ends a run at once, as SIGKILL would."""


def kill_after(patch: pytest.MonkeyPatch, kind: type, num_batches: int) -> None:
    """Let the batches of a kind end with an error after so many, of one or of several epochs."""
    epoch, left = kind.epoch, [num_batches]

    def broken(self: Any, generator: torch.Generator | None = None) -> Iterator[Any]:
        for batch in epoch(self, generator):
            if generator is not None:  # not the batches that are evaluated on
                left[0] -= 1
            if left[0] < 0:
                raise Killed
            yield batch

    patch.setattr(kind, "epoch", broken)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "optimizer"), list(zip(installed().components("strategy"), cycle(["adam", "lazy-adam"]), strict=False))
)
def test_every_strategy_goes_on_within_an_epoch(
    dataset: Dataset, bases: Path, tmp_path: Path, name: str, optimizer: str
) -> None:
    options = {"finetune": {"epochs": 3, "batch_size": 8, "optimizer": optimizer}, "run": SAVE}
    expected, whole = whole_run(runner(dataset, name, **options), tmp_path / "whole", bases)
    for num_batches in (4, 5):  # twice: within the first epoch, and in a later one where there are five batches or more
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_after(patch, TargetBatches, num_batches)
            made = runner(dataset, name, **options)
            made.resume = True
            whole_run(made, tmp_path / "killed", bases)
    made = runner(dataset, name, **options)
    made.resume = True
    metrics, killed = whole_run(made, tmp_path / "killed", bases)
    assert any("finetune: going on in epoch" in line for line in made.progress.lines)
    assert without_times(metrics) == without_times(expected)
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "sampled-softmax"])
@pytest.mark.parametrize("backbone", installed().components("backbone"))
def test_every_backbone_s_pre_training_goes_on_within_an_epoch(
    dataset: Dataset, tmp_path: Path, backbone: str, loss: str
) -> None:
    small = {"num_heads": 2} if backbone == "transformers" else {}
    options = {
        "run": {**SAVE, "backbone": backbone},
        "backbone": small,
        "pretrain": {"epochs": 2, "batch_size": 16, "loss": loss, "optimizer": "lazy-adam", "num_negatives": 8},
    }
    whole = runner(dataset, **options).pretrain(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, SourceWindows, 3)
        runner(dataset, **options).pretrain(tmp_path / "killed")
    made = runner(dataset, **options)
    made.resume = True
    killed = made.pretrain(tmp_path / "killed")
    assert any("pretrain: going on in epoch 1, after step 3" in line for line in made.progress.lines)
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
