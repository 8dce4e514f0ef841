"""Workers on a Ray cluster: actors, wherever the cluster puts them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

from finetune_kit.errors import FinetuneKitError, OptionError, one_line
from finetune_kit.interruption import Interrupted
from finetune_kit.workers.outcome import LATER, NO_MORE, Outcome, Prepare, Supply, done

LOCAL = "local"
"""The address of a cluster that lives on this machine for as long as it is used."""
PATIENCE = 60.0
"""Seconds that workers have to save what they are doing when they are told to end."""
PASSED_ON = ("FTKIT_PLUGINS",)
"""Environment variables that workers have as this process does; --no-plugins sets one."""
ENDED = "it was told to end"
KNOCK_SECONDS = 10.0
"""How long a cluster may take to answer."""


@dataclass(frozen=True)
class RayWorkers:
    """Actors of a Ray cluster; finetune-kit, the plugins, and the paths in the tasks must be there on its machines.

    Args:
        address: As of `ray.init`: ``HOST:PORT``, ``ray://HOST:PORT``, ``auto``; ``local`` starts one here.
        num_workers: How many; None takes as many as the cluster has cores for. Those without room wait.
        num_threads: Of torch in each, and the cores that an actor takes.
        num_gpus: That an actor takes.
    """

    address: str
    num_workers: int | None = None
    num_threads: int = 1
    num_gpus: float = 0.0

    def carry_out(
        self, prepare: Prepare, tasks: Iterable[Any], answer: Callable[[Any, Any], Any] | None = None
    ) -> Generator[Outcome, None, None]:
        """Do tasks as `Workers.carry_out` says.

        Raises:
            OptionError: When Ray is not installed, or there is no cluster at the address.
        """
        if isinstance(tasks, Sized) and not len(tasks):
            return
        with connected(self.address) as ray:
            size = self.num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // self.num_threads)
            crew = _Crew(ray, self, prepare, Supply(tasks), answer)
            try:
                yield from crew.carry_out(min(size, len(tasks)) if isinstance(tasks, Sized) else size)
            finally:
                crew.end()


def refuse_without_ray() -> Any:
    """Return Ray.

    Raises:
        OptionError: When it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise OptionError("--ray needs Ray: pip install 'finetune-kit[ray]'") from None
    return ray


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield Ray, connected to a cluster; one that was connected before stays so.

    Meanwhile what is printed on stdout goes to stderr: Ray prints there what becomes of workers.
    """
    ray = refuse_without_ray()
    with redirect_stdout(sys.stderr):
        if ray.is_initialized():
            yield ray
            return
        _connect(ray, address)
        try:
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise OptionError(
            f"--ray {address!r}: no cluster answers there: {one_line(error)[:200]}; start one by `ray start --head`, "
            "or give local"
        ) from None


def _knock(address: str) -> None:
    """Raise an OSError where nobody listens at ``HOST:PORT``: Ray itself would try for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()


@dataclass
class _Worker:
    """An actor, as the one that hands out the tasks sees it."""

    actor: Any
    waits_for: Any
    """The reference of what it does; of its preparation at first."""
    task: Any = NO_MORE
    is_ready: bool = False


@dataclass
class _Crew:
    """The actors of one call, and what they have in hand."""

    ray: Any
    workers: RayWorkers
    prepare: Prepare
    supply: Supply
    answer: Callable[[Any, Any], Any] | None
    _busy: dict[Any, _Worker] = field(default_factory=dict)
    _idle: list[_Worker] = field(default_factory=list)
    _num_vacant: int = 0
    _number: int = 0
    _by_number: dict[int, Any] = field(default_factory=dict)
    _mailbox: Any = None
    _letters: Any = None

    def carry_out(self, size: int) -> Iterator[Outcome]:
        self._mailbox = self.ray.remote(num_cpus=0)(_Mailbox).remote()
        self._letters = self._mailbox.take.remote()
        for _ in range(size):
            self._start()
        while any(worker.task is not NO_MORE for worker in self._busy.values()) or self._has_more():
            ready, _ = self.ray.wait([self._letters, *self._busy])
            if ready == [self._letters]:
                self._read_letters()
            elif (outcome := self._hear(self._busy.pop(ready[0]))) is not None:
                yield outcome
            self._employ()

    def end(self) -> None:
        """Tell all actors to save and end, and wait for that."""
        working = [reference for reference, worker in self._busy.items() if worker.is_ready]
        for reference in working:
            self._busy[reference].actor.end.remote()
        if working:
            self.ray.wait(working, num_returns=len(working), timeout=PATIENCE)
        for worker in (*self._busy.values(), *self._idle):
            self.ray.kill(worker.actor)
        if self._mailbox is not None:
            self.ray.kill(self._mailbox)

    def _has_more(self) -> bool:
        """Return whether tasks are left, as far as is known; actors that only start are of no use then."""
        return not self.supply.is_over

    def _start(self, task: Any = NO_MORE) -> None:
        options = {"num_cpus": self.workers.num_threads, "num_gpus": self.workers.num_gpus}
        kind = self.ray.remote(max_restarts=0, max_concurrency=2, **options)(_Actor)
        environment = {name: os.environ.get(name) for name in PASSED_ON}
        actor = kind.remote(self.workers.num_threads, self._mailbox, environment)
        reference = actor.prepare.remote(self.prepare)
        self._busy[reference] = _Worker(actor, reference, task)

    def _give(self, worker: _Worker, task: Any) -> None:
        self._number += 1
        self._by_number[self._number] = worker.task = task
        worker.waits_for = worker.actor.do.remote(self._number, task)
        self._busy[worker.waits_for] = worker

    def _hear(self, worker: _Worker) -> Outcome | None:
        """Take what an actor was busy with; return what came of its task if this is it.

        Raises:
            FinetuneKitError: When preparing failed: it would fail in another actor, too.
        """
        try:
            result = self.ray.get(worker.waits_for)
        except self.ray.exceptions.RayError as error:
            how = str(error).partition("\n")[0][:200]  # the rest tells of the cluster's inside
            if not worker.is_ready:
                raise FinetuneKitError(f"a worker ended while it started: {how}") from None
            self._num_vacant += 1
            return Outcome(worker.task, fault=f"its worker was lost: {how}", is_lost=True)
        if worker.is_ready:
            self._mailbox.wake.remote()
            self._read_letters()  # what was told before the end is heard before it
            self._idle.append(worker)
            return result
        if result:
            raise FinetuneKitError(result)
        worker.is_ready = True
        if worker.task is NO_MORE:
            self._idle.append(worker)
        else:
            self._give(worker, worker.task)
        return None

    def _employ(self) -> None:
        """Give a task to whoever has none, or send it home where there is none."""
        while (self._idle or self._num_vacant) and (task := self.supply.take()) is not LATER:
            if task is NO_MORE:
                for worker in self._idle:
                    self.ray.kill(worker.actor)
                self._idle, self._num_vacant = [], 0
            elif self._idle:
                self._give(self._idle.pop(0), task)
            else:
                self._num_vacant -= 1
                self._start(task)

    def _read_letters(self) -> None:
        for key, number, message in self.ray.get(self._letters):
            reply = None if self.answer is None else self.answer(self._by_number[number], message)
            if key is not None:
                self._mailbox.answer.remote(key, reply)
        self._letters = self._mailbox.take.remote()


class _Actor:
    """A worker, where it is. It does one task at a time; meanwhile it can be told to end."""

    def __init__(self, num_threads: int, mailbox: Any, environment: Mapping[str, str | None]) -> None:
        import torch

        torch.set_num_threads(num_threads)
        self._mailbox = mailbox
        self._is_over = threading.Event()
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    def prepare(self, prepare: Prepare) -> str:
        """Get ready; return why that failed, or nothing."""
        try:
            self._job = prepare()
        except Exception as error:
            return one_line(error, with_type=not isinstance(error, FinetuneKitError))
        return ""

    def do(self, number: int, task: Any) -> Outcome:
        """Do a task."""
        ask = _Ask(number, self._mailbox, self._is_over)
        try:
            return done(self._job, task, ask)
        except KeyboardInterrupt:
            return Outcome(task, fault=ENDED, is_lost=True)
        finally:
            ask.deliver()

    def end(self) -> None:
        """Let what is being done save and end."""
        self._is_over.set()


@dataclass
class _Ask:
    number: int
    mailbox: Any
    is_over: threading.Event
    _told: Any = None

    def __call__(self, message: Any) -> Any:
        import ray

        waited_for = self.mailbox.ask.remote(self.number, message)
        while not self.is_over.is_set():
            if ray.wait([waited_for], timeout=1.0)[0]:
                return ray.get(waited_for)
        return None

    def tell(self, message: Any) -> None:
        if self.is_over.is_set():
            raise Interrupted(signal.SIGTERM)
        self._told = self.mailbox.tell.remote(self.number, message)

    def deliver(self) -> None:
        """Wait until what was told has arrived."""
        import ray

        if self._told is not None:
            ray.wait([self._told], timeout=10.0)


class _Mailbox:
    """Takes what workers say to the process that hands out the tasks, and brings its answers back."""

    def __init__(self) -> None:
        self._letters: list[tuple[int | None, int, Any]] = []
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._has_some = asyncio.Event()

    async def ask(self, number: int, message: Any) -> Any:
        """Ask about a task; return the answer once it is there."""
        self._number += 1
        key = self._number
        self._answers[key] = asyncio.get_running_loop().create_future()
        self._letters.append((key, number, message))
        self._has_some.set()
        return await self._answers[key]

    async def tell(self, number: int, message: Any) -> None:
        """Tell something of a task."""
        self._letters.append((None, number, message))
        self._has_some.set()

    async def take(self) -> list[tuple[int | None, int, Any]]:
        """Wait for letters; return them, with key (none where no answer is wanted) and number of the task."""
        await self._has_some.wait()
        letters, self._letters = self._letters, []
        self._has_some.clear()
        return letters

    async def wake(self) -> None:
        """Let who waits for letters have those that there are, if there is none, too."""
        self._has_some.set()

    async def answer(self, key: int, value: Any) -> None:
        """Answer a question."""
        self._answers.pop(key).set_result(value)
