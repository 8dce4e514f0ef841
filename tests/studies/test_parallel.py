"""Studies carried out by several processes, here and on a Ray cluster: what one process finds, bit for bit."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from study_runs import TINY, Told, facts, metrics, tiny

from finetune_kit.comparison import parallel
from finetune_kit.comparison.compare import prepare
from finetune_kit.comparison.plan import Comparison
from finetune_kit.errors import FinetuneKitError, OptionError
from finetune_kit.presence import at_work, others_at_work
from finetune_kit.workers import LocalWorkers
from finetune_kit.workers.cluster import RayWorkers

COMPARISON = Comparison(["finetune-all", "uaf-hard"], seeds=[0, 1], sections=TINY)
WEIGHTS = "model.safetensors"


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def workers(request):
    if request.param == "ray":
        request.getfixturevalue("cluster")
        return RayWorkers("local", 2, torch.get_num_threads())
    return LocalWorkers(2, torch.get_num_threads())


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """Return the folder of a comparison that one process carried out."""
    folder = tmp_path_factory.mktemp("serial") / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder.parent)  # `config.toml` tells the git checkout around it: none, as below
        prepare(COMPARISON, folder).carry_out()
    return folder


def test_a_comparison_side_by_side_is_the_serial_one(workers, serial, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative paths are the command's, wherever workers are
    board, folder = Told(), Path("out")
    results = prepare(COMPARISON, folder).carry_out(workers, board)
    assert (board.total, board.ended) == (4, dict.fromkeys((1, 2, 3, 4), ""))
    assert board.steps
    assert [(run.setting.strategy, run.seed) for run in results.runs] == [
        *(("finetune-all", 0), ("finetune-all", 1), ("uaf-hard", 0), ("uaf-hard", 1))
    ]
    for run in serial.glob("runs/*"):
        other = folder / "runs" / run.name
        assert metrics(other) == metrics(run)
        for file in (WEIGHTS, "config.toml", "instances.parquet"):
            assert (other / file).read_bytes() == (run / file).read_bytes()
        assert {path.name for path in other.iterdir()} == {path.name for path in run.iterdir()}
    assert (folder / "comparison.json").read_text() == (serial / "comparison.json").read_text()
    assert len(list(tmp_path.glob("pretrained/*"))) == 2
    again = Told()
    prepare(COMPARISON, folder).carry_out(workers, again)
    assert again.ended == {}


class Killing(Told):
    """Kills the worker that has said how far the run with this number has come."""

    def __init__(self, number: int, worker: str):
        super().__init__()
        self.number, self.worker = number, worker

    def step(self, number, step):
        super().step(number, step)
        if number == self.number and step.stage == "finetune" and self.worker:
            children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
            for child in children:  # both, as nobody knows which of them has it
                if self.worker in Path(f"/proc/{child}/cmdline").read_text():
                    os.kill(int(child), signal.SIGKILL)
            self.worker = ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers through /proc")
def test_a_worker_killed_in_the_middle_costs_its_own_trial_alone(tmp_path):
    board = Killing(1, "spawn_main")
    search = tiny(tmp_path / "sweep", {"finetune": {"epochs": 5}}, trials=4, sampler="random")
    search.workers, search.board = LocalWorkers(1, torch.get_num_threads()), board
    found = search.carry_out()
    assert [row.state for row in found.rows] == ["complete", "failed", "complete", "complete"]
    assert found.rows[1].about["fault"] == board.ended[1] == "its worker was lost: killed by SIGKILL"
    again = tiny(tmp_path / "sweep", {"finetune": {"epochs": 5}}, trials=4, sampler="random")
    undisturbed = tiny(tmp_path / "undisturbed", {"finetune": {"epochs": 5}}, trials=4, sampler="random")
    assert facts(again.carry_out()) == facts(undisturbed.carry_out())
    assert list(again.board.ended) == [1]


@pytest.mark.slow
def test_a_search_side_by_side_draws_and_finds_the_same(workers, tmp_path):
    one, side_by_side = (tiny(tmp_path / name / "sweep", sampler="random") for name in ("one", "two"))
    side_by_side.workers = workers
    first, second = one.carry_out(), side_by_side.carry_out()
    assert facts(first) == facts(second)
    assert metrics(first.runs[0]) == metrics(second.runs[0])
    assert (first.runs[0] / WEIGHTS).read_bytes() == (second.runs[0] / WEIGHTS).read_bytes()
    assert len(list(tmp_path.glob("two/pretrained/*"))) == 1


def test_a_comparison_that_is_being_worked_on_is_not_begun_again(tmp_path):
    prepared = prepare(COMPARISON, tmp_path / "out")
    with at_work(tmp_path / "out"), pytest.raises(OptionError, match=f"worked on by process {os.getpid()} on"):
        prepared.carry_out()


def test_what_a_killed_command_left_behind_does_not_stop_the_next(tmp_path):
    with at_work(tmp_path) as name:
        others = tmp_path / ".at-work"
        host = name.rsplit(".", 2)[0]
        (others / f"{host}.999999999.00000000").touch()
        (others / "elsewhere.1.00000000").touch()
        os.utime(others / "elsewhere.1.00000000", (time.time() - 1000, time.time() - 1000))
        assert others_at_work(tmp_path, name) == []
        (others / "elsewhere.1.00000001").touch()
        assert others_at_work(tmp_path, name) == ["elsewhere.1.00000001"]
    assert not (tmp_path / ".at-work" / name).exists()


@pytest.mark.slow
def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path, cluster, monkeypatch):
    prepared = prepare(COMPARISON, tmp_path / "out")
    monkeypatch.setattr(parallel, "sign_of", lambda folder, name: folder / "not there")
    with pytest.raises(FinetuneKitError, match=r"does not see .*: put it on a file system that all machines share"):
        prepared.carry_out(RayWorkers("local", 1, 1))
