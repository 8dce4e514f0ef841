import sys

import pytest
import torch

from finetune_kit.cli import main as module
from finetune_kit.errors import FinetuneKitError
from finetune_kit.memory import enough_memory, is_out_of_memory


def fake_out_of_memory() -> list[Exception]:
    duckdb = pytest.importorskip("duckdb")
    said = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    return [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"),
        RuntimeError(said + "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        duckdb.OutOfMemoryException("Out of Memory Error: failed to allocate data of size 8.0 MiB"),
        ValueError("Maximum allowed dimension exceeded"),
    ]


@pytest.mark.parametrize("error", fake_out_of_memory(), ids=lambda error: type(error).__name__)
def test_what_any_library_raises_when_memory_runs_out_is_one_line_with_advice(error):
    said = r"^pretrain needs more memory than there is \(.+\); lower it$"
    with pytest.raises(FinetuneKitError, match=said), enough_memory("pretrain", "lower it"):
        raise error


def test_other_faults_stay_what_they_are_and_advice_that_was_given_stays():
    for error in (RuntimeError("expected all tensors on one device"), FinetuneKitError("out of memory; do this")):
        assert not is_out_of_memory(error)
        with pytest.raises(type(error), match=str(error)), enough_memory("pretrain", "lower it"):
            raise error


def test_what_no_stage_catches_is_one_line_of_the_command(monkeypatch, capsys):
    def greedy() -> None:
        raise MemoryError

    monkeypatch.setattr(module, "app", lambda standalone_mode: greedy())
    monkeypatch.setattr(sys, "argv", ["ftkit", "env"])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "ftkit: this needs more memory than there is (MemoryError); the settings that matter most are the batch sizes "
        "(finetune, pretrain, evaluation) and data.max_length\n"
    )


def test_a_backbone_too_large_to_be_built_says_so(tmp_path):
    from finetune_kit.config import resolve_config
    from finetune_kit.training.assemble import build_backbone

    for dim in (10**12, 10**22):
        config = resolve_config({"backbone": {"dim": dim}})
        with pytest.raises(FinetuneKitError, match=r"'nextitnet' .* memory .*; lower .*data\.max_length"):
            build_backbone(config, 10**6)
