"""Divided tables give what whole ones do."""

from __future__ import annotations

from pathlib import Path

import divided_checks
import pytest
import torch
from jobs import run_job
from safetensors.torch import load_file
from torch import nn

from finetune_kit.division import divide_tables
from finetune_kit.errors import CheckpointError, OptionError
from finetune_kit.tables import OutputLayer
from finetune_kit.training.state import all_there

NAMES = list(divided_checks.checks())


class Mesh:
    """Two processes, of which this is the second."""

    def size(self):
        return 2

    def get_local_rank(self):
        return 1


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_job(Path(divided_checks.__file__), str(folder))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_divided_tables_train_as_whole_ones_do(in_two, name):
    expected, found = divided_checks.checks()[name](), load_file(in_two / f"{name}.safetensors")
    assert found.keys() == expected.keys()
    tolerance = 1e-2 if "bf16" in name else 1e-5
    for key, tensor in expected.items():
        torch.testing.assert_close(
            found[key], tensor, atol=tolerance, rtol=tolerance, msg=lambda told, key=key: f"{key}: {told}"
        )


def test_a_process_holds_its_columns_alone():
    module = nn.ModuleDict(
        {
            "item": nn.Embedding(21, 8),
            "positions": nn.Embedding(7, 8),
            "head": OutputLayer(8, 9),
            "other": OutputLayer(8, 4),
        }
    )
    whole = module["item"].weight.detach().clone()
    division = divide_tables(module, (20, 9), Mesh())
    assert division.names == {"item.weight", "head.weight"}
    assert {name: tuple(part.shape) for name, part in module.named_parameters() if "weight" in name} == {
        "item.weight": (21, 4),
        "positions.weight": (7, 8),
        "head.weight": (9, 4),
        "other.weight": (4, 8),
    }
    assert torch.equal(module["item"].weight, whole[:, 4:])
    assert module["item"].weight.untyped_storage().nbytes() == 21 * 4 * 4  # not a view of the whole


def test_what_is_frozen_stays_frozen():
    module = nn.ModuleDict({"item": nn.Embedding(21, 8).requires_grad_(False)})
    divide_tables(module, (20,), Mesh())
    assert not module["item"].weight.requires_grad


def test_columns_that_can_not_be_shared_alike_are_refused():
    with pytest.raises(OptionError, match=r"^item has 7 columns, which 2 processes can't share alike; set run.devices"):
        divide_tables(nn.ModuleDict({"item": nn.Embedding(21, 7)}), (20,), Mesh())


def test_a_state_of_divided_tables_is_not_passed_over(tmp_path):
    assert not all_there(tmp_path / "state.safetensors")
    (tmp_path / "state-1.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"state-1.safetensors is of other processes: run.tables=divided"):
        all_there(tmp_path / "state.safetensors")
