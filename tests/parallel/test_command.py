"""`ftkit run` in two processes, by each launcher: killed, gone on with by another number, one folder written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import environment, free_port
from safetensors.torch import load_file

from finetune_kit.cli import launch
from finetune_kit.files import read_table

FTKIT = [sys.executable, "-c", "from finetune_kit.cli.main import main; main()"]
RUN = [
    *("run", "--strategy", "finetune-last1", "--device", "cpu", "--max-length", "8", "--epochs", "15"),
    *("--batch-size", "16", "--set", "finetune.patience=0", "--set", "data.users=300", "--set", "pretrain.epochs=1"),
    *("--set", "backbone.dim=8", "--set", "backbone.num_blocks=2", "--set", "run.save_minutes=0.002"),
]
"""A run of a few seconds that saves within its epochs."""
TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "finetune_kit")
]


def environ(cache: Path) -> dict[str, str]:
    return {**os.environ, "FTKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def start(command: list[str], folder: Path, *more: str) -> subprocess.Popen[str]:
    words = [*command, *RUN, "--output", str(folder / "run"), *more]
    return subprocess.Popen(
        words, env=environ(folder.parent / "cache"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error[-3000:]
    return out, error


def wait_for_epochs(folder: Path, number: int) -> None:
    """Wait until a run's log tells of some epochs of fine-tuning."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        log = folder / "run" / "log.jsonl"
        if log.exists() and sum('"finetune"' in line for line in log.read_text().splitlines()) >= number:
            return
        time.sleep(0.02)
    raise AssertionError("no epoch was done within a minute")


def children(process: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def in_one(root: Path) -> Path:
    """A run in one process that nothing disturbs."""
    finished(start(FTKIT, root / "one"))
    return root / "one" / "run"


def refuse_difference(found: Path, expected: Path) -> None:
    """Raise where a run has other files, weights or numbers than one in one process, but for rounding."""
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    assert {path.name for path in (found / "last").iterdir()} == {path.name for path in (expected / "last").iterdir()}
    weights, same = load_file(found / "model.safetensors"), load_file(expected / "model.safetensors")
    torch.testing.assert_close(weights, same, atol=1e-3, rtol=1e-3)
    losses, same_losses = (read_table(folder / "history.parquet")["train_loss"] for folder in (found, expected))
    assert losses == pytest.approx(same_losses, rel=1e-4)
    metrics, same_metrics = (_metrics(folder)["test"]["full"] for folder in (found, expected))
    assert metrics == pytest.approx(same_metrics, abs=0.02)


def _metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_worker_that_is_killed_ends_the_job_and_one_process_goes_on(root, in_one):
    job = start(FTKIT, root / "killed", "--devices", "2")
    wait_for_epochs(root / "killed", 2)
    workers = children(job.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, error = job.communicate(timeout=60)
    told = [line for line in error.splitlines() if line.startswith("ftkit: ")]
    assert job.returncode == 1
    assert len(told) == 1 and error.splitlines()[-1] == told[0], error
    assert told[0].startswith("ftkit: worker 1 of 2 (numbered from 0) died: killed by signal 9, SIGKILL"), told
    assert told[0].endswith("--resume")
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    _, error = finished(start(FTKIT, root / "killed", "--resume"))
    assert "finetune: going on" in error
    refuse_difference(root / "killed" / "run", in_one)


@pytest.mark.slow
def test_two_processes_of_torchrun_go_on_with_a_run_of_one(root, in_one):
    one = start(FTKIT, root / "torchrun")
    wait_for_epochs(root / "torchrun", 2)
    one.send_signal(signal.SIGTERM)
    one.communicate(timeout=60)
    assert one.returncode == 143
    out, error = finished(start(TORCHRUN, root / "torchrun", "--resume"))
    assert error.count("finetune: going on") == 1
    assert out.count(str(root / "torchrun" / "run")) == 1
    refuse_difference(root / "torchrun" / "run", in_one)


@pytest.mark.slow
def test_two_processes_that_srun_starts_train_together(root, in_one):
    """SLURM itself is not here: its environment is, as srun gives it to two tasks."""
    shared = {
        "SLURM_STEP_NUM_TASKS": 2,
        "SLURM_STEP_NUM_NODES": 1,
        "SLURM_NTASKS": 2,
        "SLURM_NTASKS_PER_NODE": 2,
        "SLURM_NNODES": 1,
        "SLURM_JOB_ID": 7,
        "SLURM_JOB_NAME": "train",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NODEID": 0,
        "MASTER_PORT": free_port(),
    }
    words = [*FTKIT, *RUN, "--output", str(root / "slurm" / "run")]
    tasks = []
    for rank in range(2):
        told = {**shared, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        env = {**environ(root / "cache"), **{name: str(value) for name, value in told.items()}}
        pipe = subprocess.PIPE
        tasks.append(subprocess.Popen(words, env=env, stdout=pipe, stderr=pipe, text=True))
    outs = [finished(task)[0] for task in tasks]
    assert [bool(out) for out in outs] == [True, False]
    refuse_difference(root / "slurm" / "run", in_one)


def test_an_error_that_all_processes_have_is_told_once(tmp_path, monkeypatch):
    told = []
    for rank in range(2):
        for name, value in environment(rank, 2, 1).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / str(rank) / "error.json"))
        (tmp_path / "attempt_0" / str(rank)).mkdir(parents=True)
        told.append(launch.is_first_to_tell(2))
    assert told == [True, False]
    assert (tmp_path / "attempt_0" / launch.TOLD).read_text() == "2"
