"""The same batches give the same weights in two processes as in one, and the same model the same numbers."""

from __future__ import annotations

from pathlib import Path

import checks
import pytest
import torch
from jobs import run_job
from safetensors.torch import load_file

from finetune_kit.plugins import installed

FEW = (
    *("finetune-all", "gradual-unfreezing", "mtl", "uaf-hard", "uaf-rl", "spottune", "one branch", "resting at first"),
    *("finetune-all lazy", "mtl lazy", "uaf-hard bf16", "finetune-all accumulated", "finetune-all lazy accumulated"),
    *("pretrain", "pretrain accumulated", "pretrain sampled lazy", "pretrain hidden items"),
    *("exactly: measured", "exactly: measured label", "exactly: held-out loss"),
)
"""What the default suite looks at: one of each kind."""
ALL = tuple(checks.checks(Path()))


@pytest.fixture(scope="module")
def few_in_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    run_job(Path(checks.__file__), str(folder), *FEW)
    return folder


@pytest.fixture(scope="module")
def others_in_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("others")
    run_job(Path(checks.__file__), str(folder), *(name for name in ALL if name not in FEW))
    return folder


def compare(folder: Path, name: str) -> None:
    found, expected = load_file(folder / f"{name}.safetensors"), checks.checks(folder)[name]()
    assert found.keys() == expected.keys()
    tolerance = 0.0 if name.startswith("exactly") else 3e-3 if "bf16" in name else 1e-5
    for key, tensor in expected.items():
        torch.testing.assert_close(
            found[key], tensor, atol=tolerance, rtol=tolerance, msg=lambda told, key=key: f"{key}: {told}"
        )


@pytest.mark.parametrize("name", FEW)
def test_two_processes_compute_what_one_does(few_in_two, name):
    compare(few_in_two, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in FEW])
def test_two_processes_compute_what_one_does_with_every_strategy(others_in_two, name):
    compare(others_in_two, name)


def test_every_strategy_is_looked_at():
    assert installed().components("strategy").keys() <= set(ALL)


def test_a_batch_in_parts_gives_the_weights_of_the_whole_batch():
    fabric = checks.make_fabric("cpu")
    for make, batches in (
        (lambda: checks.make_strategy("finetune-all"), lambda: checks.target_batches("finetune-all")),
        (lambda: checks.make_strategy("l2-sp"), lambda: checks.target_batches("l2-sp")),
    ):
        whole, parts = (checks.trained(make(), batches(), fabric, accumulate=number) for number in (1, 3))
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    whole, parts = (checks.pretrained("sasrec", fabric, 8, accumulate=number) for number in (1, 3))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
