"""The same batches give the same weights in two processes as in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import checks
from finetune_kit.processes import Processes, slices
from jobs import run_job

NAMES = list(checks.checks())
ROUNDED = ("accumulated",)


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_job(Path(checks.__file__), str(folder))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_one_process(in_two, name):
    expected = checks.checks()[name]()
    found = load_file(in_two / f"{name}.safetensors")
    assert found.keys() == expected.keys()
    tolerance = 1e-2 if "bf16" in name else 1e-5
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=tolerance, rtol=tolerance, msg=lambda told, key=key: f"{key}: {told}")
