"""Workers on this machine: processes of their own, each with a pipe."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from finetune_kit.errors import FinetuneKitError, one_line
from finetune_kit.interruption import Interrupted
from finetune_kit.workers.outcome import LATER, NO_MORE, Outcome, Prepare, Supply, done

PATIENCE = 60.0
"""Seconds that workers have to save what they are doing when they are told to end."""
WAITING = "OMP_WAIT_POLICY"
"""The environment variable that says what threads of OpenMP do while they wait."""
GONE = (EOFError, BrokenPipeError, ConnectionResetError)
"""What a pipe says when the process at its other end is gone."""


@dataclass(frozen=True)
class LocalWorkers:
    """Processes on this machine.

    They are started anew (``spawn``), so a script that uses them guards its own work by ``if __name__ == "__main__"``.
    When this process is told to end, by Ctrl-C or SIGTERM, they are sent SIGTERM and may save; when it dies, likewise.
    They have its environment, and so the plugins that it lets in.

    Args:
        num_workers: How many, at least 1.
        num_threads: Of torch in each. Numbers are the same bit for bit only under the same number of threads. None does
            not even import torch. Where all together are more than the cores, they sleep while they wait for each other
            (``OMP_WAIT_POLICY=PASSIVE``, unless that is set): else most of the time goes into waiting.
    """

    num_workers: int
    num_threads: int | None

    def carry_out(
        self, prepare: Prepare, tasks: Iterable[Any], answer: Callable[[Any, Any], Any] | None = None
    ) -> Generator[Outcome, None, None]:
        """Do tasks as `Workers.carry_out` says."""
        size = min(self.num_workers, len(tasks)) if isinstance(tasks, Sized) else self.num_workers
        crew = _Crew(prepare, self.num_threads, Supply(tasks), answer)
        with _waiting_asleep(size * (self.num_threads or 1)):
            try:
                yield from crew.carry_out(size)
            finally:
                crew.end()


class _Crew:
    """The processes of one call."""

    def __init__(
        self, prepare: Prepare, num_threads: int | None, supply: Supply, answer: Callable[[Any, Any], Any] | None
    ) -> None:
        self._prepare, self._num_threads, self._supply, self._answer = prepare, num_threads, supply, answer
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._num_vacant = 0
        """Places of workers that were lost; another is started only for a task."""

    def carry_out(self, size: int) -> Iterator[Outcome]:
        self._workers = [_Worker(self._prepare, self._num_threads) for _ in range(size)]
        while self._workers:
            for worker in self._with_news():
                if worker in self._workers and (outcome := self._hear(worker)) is not None:
                    yield outcome
                self._employ()

    def end(self) -> None:
        """Tell all processes to save and end, and wait for that."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.wait_for_end(PATIENCE)

    def _with_news(self) -> list[_Worker]:
        """Wait for news; return whose there are. A pipe is at its end when its process is gone."""
        told = wait([worker.connection for worker in self._workers])
        return [worker for worker in self._workers if worker.connection in told]

    def _hear(self, worker: _Worker) -> Outcome | None:
        """Take one piece of news; return what came of the worker's task if this is it."""
        kind, content = worker.news()
        if kind == "unprepared":
            raise FinetuneKitError(content)
        if kind == "lost":
            was_idle = worker in self._idle
            self._dismiss(worker)
            self._num_vacant += 1
            outcome = worker.lost(content)
            return None if was_idle else outcome
        if kind in ("asks", "tells"):
            reply = None if self._answer is None else self._answer(worker.task, content)
            if kind == "asks":
                worker.send(reply)
            return None
        if kind == "ready" and worker.task is not NO_MORE:
            worker.take_on(worker.task)
        else:
            self._idle.append(worker)
        return content if kind == "done" else None

    def _employ(self) -> None:
        """Give a task to whoever has none, or send it home where there is none."""
        while (self._idle or self._num_vacant) and (task := self._supply.take()) is not LATER:
            if task is NO_MORE:
                self._num_vacant = 0
                for worker in list(self._idle):
                    worker.send(("end", None))
                    self._dismiss(worker)
                    worker.wait_for_end(PATIENCE)
            elif self._idle:
                self._idle.pop(0).take_on(task)
            else:
                self._num_vacant -= 1
                self._workers.append(_Worker(self._prepare, self._num_threads, task))
        assert not self._workers or len(self._idle) < len(self._workers), "nothing is in hand that could bring news"

    def _dismiss(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        if worker in self._idle:
            self._idle.remove(worker)


def share_of_cores(num_workers: int) -> int:
    """Return how many threads each of some workers takes: ``OMP_NUM_THREADS``, or its share of this machine's cores."""
    if (given := os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]).isdecimal():
        return max(1, int(given))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // num_workers)


class _Worker:
    """A process, as the one that hands out the tasks sees it."""

    def __init__(self, prepare: Prepare, num_threads: int | None, task: Any = NO_MORE) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, prepare, num_threads))
        with _deaf_to_ctrl_c():
            self._process.start()
        other.close()
        self.task = task
        """What it has in hand, or is to do once it is ready."""
        self._is_ready = False

    def news(self) -> tuple[str, Any]:
        """Return what the process says: ``ready``, ``unprepared``, ``asks``, ``tells``, ``done``, or ``lost``."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            return "lost", _how_it_ended(self._process.exitcode)
        self._is_ready = True
        return kind, content

    def lost(self, how: str) -> Outcome:
        """Return what came of the task that a lost process had in hand.

        Raises:
            FinetuneKitError: When it was lost before it had one: another would be, too.
        """
        self.connection.close()
        if not self._is_ready:
            raise FinetuneKitError(f"a worker ended while it started: {how}; try fewer workers")
        return Outcome(self.task, fault=f"its worker was lost: {how}", is_lost=True)

    def send(self, content: Any) -> None:
        """Send to the process; if it is gone, that is the next news."""
        with suppress(*GONE):
            self.connection.send(content)

    def take_on(self, task: Any) -> None:
        """Hand a task to the process."""
        self.task = task
        self.send(("task", task))

    def terminate(self) -> None:
        """Tell the process to save and end; what it asks from now on is answered by None."""
        self._process.terminate()
        self.connection.close()

    def wait_for_end(self, patience: float) -> None:
        """Wait until the process has ended, and no longer than ``patience`` seconds: then it is killed."""
        self._process.join(patience)
        self._process.kill()
        self._process.join()
        self.connection.close()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Let a process that is started meanwhile ignore SIGINT from its first moment; the terminal sends it to all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        if before is not None:  # else a handler that was not set in Python
            signal.signal(signal.SIGINT, before)


@contextmanager
def _waiting_asleep(num_threads: int) -> Iterator[None]:
    """Let processes that are started meanwhile put waiting threads to sleep, if all are more than the cores."""
    if WAITING in os.environ or num_threads <= (os.cpu_count() or 1):
        yield
        return
    os.environ[WAITING] = "PASSIVE"  # read by OpenMP when a process loads it, so this process stays as it is
    try:
        yield
    finally:
        del os.environ[WAITING]


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"it ended with exit status {code}"


def _work(connection: Connection, prepare: Prepare, num_threads: int | None) -> None:
    """Do tasks until there is none; the process's beginning and end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever hands out the tasks decides what Ctrl-C does
    signal.signal(signal.SIGTERM, _terminate)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(*GONE):
        try:
            _serve(connection, prepare, num_threads)
        except KeyboardInterrupt as error:
            sys.exit(128 + getattr(error, "number", signal.SIGTERM))


def _serve(connection: Connection, prepare: Prepare, num_threads: int | None) -> None:
    if num_threads is not None:
        import torch

        torch.set_num_threads(num_threads)
    try:
        job = prepare()
    except Exception as error:
        connection.send(("unprepared", one_line(error, with_type=not isinstance(error, FinetuneKitError))))
        return
    connection.send(("ready", None))
    while True:
        kind, task = connection.recv()
        if kind == "end":
            return
        outcome = done(job, task, _Ask(connection))
        try:
            connection.send(("done", outcome))
        except (AttributeError, TypeError, ValueError) as error:  # a result that can't be pickled
            connection.send(("done", Outcome(task, fault=one_line(error, with_type=True))))


@dataclass(frozen=True)
class _Ask:
    """Where the pipe is at its end, SIGTERM is on its way: what is being done then comes to a good end."""

    connection: Connection

    def __call__(self, message: Any) -> Any:
        try:
            self.connection.send(("asks", message))
            return self.connection.recv()
        except GONE:
            return None

    def tell(self, message: Any) -> None:
        with suppress(*GONE):
            self.connection.send(("tells", message))


def _terminate(number: int, frame: object) -> None:
    raise Interrupted(number)


def _end_with_parent() -> None:
    """Send this process SIGTERM once the one that started it is gone, however that came."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
