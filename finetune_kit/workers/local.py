"""Workers on this machine: processes of their own, each with a pipe."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from finetune_kit.errors import FinetuneKitError, one_line
from finetune_kit.interruption import Interrupted
from finetune_kit.workers.outcome import Outcome, Prepare, done

PATIENCE = 60.0
"""Seconds that workers have to save what they are doing when they are told to end."""


@dataclass(frozen=True)
class LocalWorkers:
    """Processes on this machine.

    They are started anew (``spawn``), so a script that uses them guards its own work by ``if __name__ == "__main__"``.
    When this process is told to end, by Ctrl-C or SIGTERM, they are sent SIGTERM and may save; when it dies, likewise.

    Args:
        num_workers: How many, at least 1.
        num_threads: Of torch in each. Numbers are the same bit for bit only under the same number of threads.
    """

    num_workers: int
    num_threads: int

    def carry_out(
        self, prepare: Prepare, tasks: Sequence[Any], answer: Callable[[Any, Any], Any] | None = None
    ) -> Iterator[Outcome]:
        """Do tasks as `Workers.carry_out` says."""
        waiting = deque(tasks)
        crew = [_Worker(prepare, self.num_threads) for _ in range(min(self.num_workers, len(waiting)))]
        try:
            while crew:
                for worker in _with_news(crew):
                    kind, content = worker.news()
                    if kind == "unprepared":
                        raise FinetuneKitError(content)
                    if kind == "asks":
                        worker.send(None if answer is None else answer(worker.task, content))
                        continue
                    if kind == "done":
                        yield content
                    elif kind == "lost":
                        crew.remove(worker)
                        yield worker.lost(content)
                        if not waiting:
                            continue
                        crew.append(_Worker(prepare, self.num_threads))
                        continue
                    if not worker.take_on(waiting):
                        crew.remove(worker)
                        worker.wait_for_end(PATIENCE)
        finally:
            for worker in crew:
                worker.terminate()
            for worker in crew:
                worker.wait_for_end(PATIENCE)


def share_of_cores(num_workers: int) -> int:
    """Return how many threads each of some workers takes: ``OMP_NUM_THREADS``, or its share of this machine's cores."""
    if (given := os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]).isdecimal():
        return max(1, int(given))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // num_workers)


class _Worker:
    """A process, as the one that hands out the tasks sees it."""

    def __init__(self, prepare: Prepare, num_threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, prepare, num_threads))
        self._process.start()
        other.close()
        self.sentinel = self._process.sentinel
        self.task: Any = None
        self._is_ready = False

    def news(self) -> tuple[str, Any]:
        """Return what the process says: ``ready``, ``unprepared``, ``asks``, ``done``, or ``lost`` if it is gone."""
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
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(content)

    def take_on(self, waiting: deque[Any]) -> bool:
        """Hand the next task to the process, or send it home and return False where there is none."""
        self.task = waiting.popleft() if waiting else None
        is_busy = self.task is not None
        self.send(("task", self.task) if is_busy else ("end", None))
        return is_busy

    def terminate(self) -> None:
        """Tell the process to save and end."""
        self._process.terminate()

    def wait_for_end(self, patience: float) -> None:
        """Wait until the process has ended, and no longer than ``patience`` seconds: then it is killed."""
        self._process.join(patience)
        self._process.kill()
        self._process.join()
        self.connection.close()


def _with_news(crew: list[_Worker]) -> list[_Worker]:
    """Wait for news; return whose there are. A pipe is at its end when its process is gone."""
    told = wait([worker.connection for worker in crew])
    return [worker for worker in crew if worker.connection in told]


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"it ended with exit status {code}"


def _work(connection: Connection, prepare: Prepare, num_threads: int) -> None:
    """Do tasks until there is none; the process's beginning and end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to all; whoever hands out the tasks decides
    signal.signal(signal.SIGTERM, _terminate)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(BrokenPipeError, ConnectionResetError, EOFError):
        try:
            _serve(connection, prepare, num_threads)
        except KeyboardInterrupt as error:
            sys.exit(128 + getattr(error, "number", signal.SIGTERM))


def _serve(connection: Connection, prepare: Prepare, num_threads: int) -> None:
    import torch

    torch.set_num_threads(num_threads)

    def ask(message: Any) -> Any:
        connection.send(("asks", message))
        return connection.recv()

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
        outcome = done(job, task, ask)
        try:
            connection.send(("done", outcome))
        except (AttributeError, TypeError, ValueError) as error:  # a result that can't be pickled
            connection.send(("done", Outcome(task, fault=one_line(error, with_type=True))))


def _terminate(number: int, frame: object) -> None:
    raise Interrupted(number)


def _end_with_parent() -> None:
    """Send this process SIGTERM once the one that started it is gone, however that came."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
