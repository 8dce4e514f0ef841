import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import runner, whole_run
from torch.backends import cudnn

from finetune_kit.config import resolve_config
from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import OptionError
from finetune_kit.files import read_metrics
from finetune_kit.training import determinism
from finetune_kit.training.determinism import deterministically, is_deterministic
from finetune_kit.training.stages import Finetuning

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "wanted", "expected"),
    [(CPU, "auto", True), (CPU, "true", True), (CPU, "false", False), (CUDA, "auto", False), (CUDA, "true", True)],
)
def test_it_is_on_on_a_cpu_and_elsewhere_where_it_is_asked_for(device, wanted, expected):
    assert is_deterministic(device, wanted) == expected


@pytest.mark.parametrize("given", [True, "true", False, "false", "auto"])
def test_the_option_is_a_word_or_what_toml_and_the_flag_have_for_it(given):
    assert resolve_config({"run": {"deterministic": given}}).run.deterministic == str(given).lower()


def test_another_word_is_refused():
    with pytest.raises(OptionError, match=r"run\.deterministic = 'maybe': .*'auto', 'true' or 'false'"):
        resolve_config({"run": {"deterministic": "maybe"}})


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        cudnn.deterministic,
        cudnn.benchmark,
    )


def test_the_settings_hold_within_and_come_back_whatever_happens():
    before = settings()
    with deterministically(CPU, "auto"):
        assert settings() == (True, False, True, False)
    assert settings() == before
    with pytest.raises(KeyError), deterministically(CPU, "auto"):
        raise KeyError
    assert settings() == before
    with deterministically(CPU, "false"):
        assert settings() == before


def test_an_operation_without_a_deterministic_form_is_refused_in_one_line():
    with (
        pytest.raises(
            OptionError, match=r"^deterministic on cpu: \S+ does not have a .*; set run.deterministic=false$"
        ),
        deterministically(CPU, "true"),
    ):
        torch.empty(3, 3).put_(torch.tensor([0, 0]), torch.ones(2))  # has none, on any device
    with pytest.raises(RuntimeError, match="size"), deterministically(CPU, "true"):
        _ = torch.ones(2) + torch.ones(3)


def test_cublas_is_told_before_it_starts_and_not_where_it_does_not_matter(monkeypatch):
    monkeypatch.delenv(determinism.WORKSPACE, raising=False)
    determinism.prepare_device(CPU, "true")
    determinism.prepare_device(CUDA, "auto")
    assert determinism.WORKSPACE not in os.environ
    determinism.prepare_device(CUDA, "true")
    assert os.environ[determinism.WORKSPACE] == ":4096:8"
    monkeypatch.setenv(determinism.WORKSPACE, ":0:0")
    with pytest.raises(OptionError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0 is not deterministic; unset it"):
        determinism.prepare_device(CUDA, "true")


def test_runs_are_deterministic_and_say_so(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    carried_out = Finetuning.carry_out
    monkeypatch.setattr(Finetuning, "carry_out", lambda self: seen.append(settings()[0]) or carried_out(self))
    metrics, _ = whole_run(made := runner(dataset), tmp_path / "on")
    expected = {"device": "cpu", "threads": torch.get_num_threads(), "deterministic": True}
    assert metrics["machine"] == read_metrics(made.pretrain(tmp_path / "on"))["machine"] == expected
    off, _ = whole_run(runner(dataset, run={"strategy": "finetune-zero", "deterministic": False}), tmp_path / "off")
    assert off["machine"] == {**expected, "deterministic": False}
    assert seen == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_base_that_must_be_deterministic_is_not_one_that_need_not_be(dataset: Dataset):
    auto, asked = (runner(dataset, run={"deterministic": wanted})._decides_pretrained() for wanted in ("auto", "true"))
    assert asked == {**auto, "deterministic": True}


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "threads"), [("finetune-all", 1), ("finetune-all", 2), ("uaf-rl", 2), ("mtl", 2)])
def test_two_processes_of_one_seed_write_the_same_weights(strategy: str, threads: int, tmp_path: Path):
    written = []
    for name in ("one", "two"):
        folder = tmp_path / name
        options = ["users=100", "max_length=10"]
        small = [f"data.{option}" for option in options] + ["backbone.dim=8", "pretrain.epochs=1"]
        arguments = [f"--strategy={strategy}", "--epochs=2", f"--output={folder / 'run'}", "--device=cpu"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "FTKIT_CACHE": str(tmp_path / "cache")}
        subprocess.run(
            [sys.executable, "-c", "from finetune_kit.cli.main import main; main()", "run", *arguments]
            + [part for option in small for part in ("--set", option)],
            env=environment,
            check=True,
            capture_output=True,
        )
        assert read_metrics(folder / "run")["machine"]["threads"] == threads
        written.append((folder / "run" / "model.safetensors").read_bytes())
    assert written[0] == written[1]
