import os
import socket
import sys
from functools import partial

import pytest
from worker_jobs import broken, calculator, dying

from finetune_kit.errors import FinetuneKitError, OptionError
from finetune_kit.workers import LATER, Here, LocalWorkers
from finetune_kit.workers.cluster import RayWorkers, connected

KINDS = {"local": LocalWorkers(2, None), "ray": RayWorkers("local", 2)}


@pytest.fixture(scope="module")
def cluster():
    """Ray is started once for all tests."""
    ray = pytest.importorskip("ray")
    paths = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}  # where this file is, too
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=paths)
    yield
    ray.shutdown()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def workers(request):
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return KINDS[request.param]


def test_every_task_is_done_once(workers):
    tasks = [("add", number) for number in range(7)]
    outcomes = list(workers.carry_out(partial(calculator, 10), tasks))
    assert sorted(outcome.task for outcome in outcomes) == tasks
    assert all(outcome.result == outcome.task[1] + 10 for outcome in outcomes)


def test_a_worker_is_prepared_once(workers):
    outcomes = list(workers.carry_out(partial(calculator, 0), [("where", number) for number in range(6)]))
    assert all(made_in == pid != os.getpid() for made_in, pid in (outcome.result for outcome in outcomes))
    assert len({outcome.result for outcome in outcomes}) <= 2


def test_a_lost_worker_costs_its_own_task_alone(workers):
    tasks = [("add", 1), ("die", 2), ("add", 3), ("add", 4), ("die", 5), ("die", 6)]
    outcomes = {outcome.task: outcome for outcome in workers.carry_out(partial(calculator, 0), tasks)}
    assert {task for task, outcome in outcomes.items() if outcome.is_lost} == {("die", 2), ("die", 5), ("die", 6)}
    assert "its worker was lost" in outcomes["die", 2].fault
    assert [outcomes["add", number].result for number in (1, 3, 4)] == [1, 3, 4]


def test_a_job_s_error_is_the_outcome_of_its_task(workers):
    outcomes = {
        outcome.task[0]: outcome for outcome in workers.carry_out(partial(calculator, 0), [("refuse", 1), ("crash", 2)])
    }
    assert (outcomes["refuse"].fault, outcomes["refuse"].where) == ("1 is refused", "")
    assert outcomes["crash"].fault == "RuntimeError: 2 crashed"
    assert 'raise RuntimeError(f"{number} crashed")' in outcomes["crash"].where
    assert not outcomes["crash"].is_lost


def test_jobs_are_answered_what_they_ask(workers):
    asked = []

    def answer(task, message):
        asked.append((task, message))
        return 100 * message

    tasks = [("ask", number) for number in range(4)]
    outcomes = workers.carry_out(partial(calculator, 1), tasks, answer)
    assert {outcome.task[1]: outcome.result for outcome in outcomes} == {0: 1, 1: 101, 2: 201, 3: 301}
    assert sorted(asked) == [(task, task[1]) for task in tasks]


def test_jobs_tell_without_waiting_for_an_answer(workers):
    told = []
    tasks = [("tell", 3), ("add", 1)]
    outcomes = list(
        workers.carry_out(partial(calculator, 1), tasks, lambda task, message: told.append((task, message)))
    )
    assert len(outcomes) == 2
    assert sorted(told) == [(("tell", 3), k) for k in range(3)]


class OneAfterTheOther:
    """Has a task ready only when the one before is done."""

    def __init__(self, count):
        self.left, self.is_in_hand = count, False

    def __iter__(self):
        return self

    def __next__(self):
        if self.is_in_hand:
            return LATER
        if not self.left:
            raise StopIteration
        self.left, self.is_in_hand = self.left - 1, True
        return "add", self.left


def test_a_task_that_is_not_ready_is_asked_for_again(workers):
    tasks = OneAfterTheOther(3)
    seen = []
    for outcome in workers.carry_out(partial(calculator, 0), tasks):
        seen.append(outcome.result)
        tasks.is_in_hand = False
    assert seen == [2, 1, 0]


def test_workers_let_in_the_same_plugins(workers, monkeypatch):
    monkeypatch.setenv("FTKIT_PLUGINS", "")
    assert [outcome.result for outcome in workers.carry_out(partial(calculator, 0), [("plugins", 0)])] == [""]


def test_this_process_can_be_the_only_worker():
    tasks = [("add", 1), ("refuse", 2), ("ask", 3)]
    outcomes = list(Here().carry_out(partial(calculator, 10), tasks, lambda task, message: 2 * message))
    assert [(outcome.result, outcome.fault) for outcome in outcomes] == [(11, ""), (None, "2 is refused"), (16, "")]


def test_what_can_not_be_prepared_is_told_once(workers):
    with pytest.raises(FinetuneKitError, match=r"^there is no model$"):
        list(workers.carry_out(broken, [("add", 1), ("add", 2)]))


def test_a_worker_that_dies_at_once_is_not_started_again(workers):
    with pytest.raises(FinetuneKitError, match="ended while it started"):
        list(workers.carry_out(dying, [("add", 1)]))


def test_leaving_early_ends_the_workers(workers):
    outcomes = workers.carry_out(partial(calculator, 0), [("where", number) for number in range(50)])
    _, pid = next(outcomes).result
    outcomes.close()
    if isinstance(workers, LocalWorkers):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_no_tasks_need_no_workers(workers):
    assert list(workers.carry_out(dying, [])) == []


def test_a_cluster_that_is_not_there_is_told(monkeypatch):
    ray = pytest.importorskip("ray")

    def refuse(**options):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(OptionError, match="'auto': no cluster answers there: nobody answers"), connected("auto"):
        pass


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_told_before_ray_tries(monkeypatch, scheme):
    ray = pytest.importorskip("ray")
    with socket.socket() as closed:  # bound, and not listening
        closed.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was asked"))
        with pytest.raises(OptionError, match=f"'{address}': no cluster answers there: "), connected(address):
            pass
