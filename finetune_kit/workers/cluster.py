"""Workers on a Ray cluster: actors, wherever the cluster puts them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from finetune_kit.errors import FinetuneKitError, OptionError, one_line
from finetune_kit.workers.outcome import Outcome, Prepare, done

LOCAL = "local"
"""The address of a cluster that lives on this machine for as long as it is used."""
POLL_SECONDS = 0.2
"""How long a question of a worker may lie before it is looked at."""
PASSED_ON = ("FTKIT_PLUGINS",)
"""Environment variables that workers have as this process does."""


@dataclass(frozen=True)
class RayWorkers:
    """Actors of a Ray cluster; finetune-kit, the plugins, and the paths in the tasks must be there on its machines.

    Args:
        address: As of `ray.init`: ``HOST:PORT``, ``ray://HOST:PORT``, ``auto``; ``local`` starts one here.
        num_workers: How many, at least 1. Those that the cluster has no room for wait.
        num_threads: Of torch in each, and the cores that an actor takes.
        num_gpus: That an actor takes.
    """

    address: str
    num_workers: int
    num_threads: int = 1
    num_gpus: float = 0.0

    def carry_out(
        self, prepare: Prepare, tasks: Sequence[Any], answer: Callable[[Any, Any], Any] | None = None
    ) -> Iterator[Outcome]:
        """Do tasks as `Workers.carry_out` says.

        Raises:
            OptionError: When Ray is not installed, or there is no cluster at the address.
        """
        if not tasks:
            return
        with connected(self.address) as ray:
            yield from _Crew(ray, self, prepare, answer).carry_out(tasks)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield Ray, connected to a cluster; one that was connected before stays so."""
    try:
        import ray
    except ImportError:
        raise OptionError("--ray needs Ray: pip install 'finetune-kit[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {"address": address}
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": passed})
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise OptionError(
            f"--ray {address!r}: no cluster answers there: {one_line(error)[:200]}; start one by `ray start --head`, "
            "or give local"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


class _Crew:
    """The actors of one call, and what they have in hand."""

    def __init__(
        self, ray: Any, workers: RayWorkers, prepare: Prepare, answer: Callable[[Any, Any], Any] | None
    ) -> None:
        self._ray, self._prepare, self._answer = ray, prepare, answer
        self._num_threads = workers.num_threads
        self._size = workers.num_workers
        self._mailbox = ray.remote(num_cpus=0)(_Mailbox).remote() if answer else None
        self._actor = ray.remote(num_cpus=workers.num_threads, num_gpus=workers.num_gpus, max_restarts=0)(_Actor)
        self._pending: dict[Any, tuple[Any, int | None]] = {}
        """What is waited for, with the actor and the number of its task; no number while it is prepared."""

    def carry_out(self, tasks: Sequence[Any]) -> Iterator[Outcome]:
        waiting = deque(range(len(tasks)))
        for _ in range(min(self._size, len(tasks))):
            self._start()
        try:
            while self._pending:
                timeout = POLL_SECONDS if self._mailbox else None
                ready, _ = self._ray.wait(list(self._pending), timeout=timeout)
                self._answer_questions(tasks)
                for reference in ready:
                    actor, number = self._pending.pop(reference)
                    outcome = self._outcome(reference, None if number is None else tasks[number])
                    if number is not None:
                        yield outcome
                    if waiting and outcome.is_lost:
                        self._start()
                    elif waiting:
                        number = waiting.popleft()
                        self._pending[actor.do.remote(number, tasks[number])] = (actor, number)
                    else:
                        self._ray.kill(actor)
        finally:
            for actor, _ in self._pending.values():
                self._ray.kill(actor)

    def _start(self) -> None:
        actor = self._actor.remote(self._prepare, self._num_threads, self._mailbox)
        self._pending[actor.fault.remote()] = (actor, None)

    def _outcome(self, reference: Any, task: Any) -> Outcome:
        """Return what came of a task, or for None of preparing an actor.

        Raises:
            FinetuneKitError: When preparing failed: it would fail in another actor, too.
        """
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            how = str(error).partition("\n")[0][:200]  # the rest tells of the cluster's inside
            if task is None:
                raise FinetuneKitError(f"a worker ended while it started: {how}") from None
            return Outcome(task, fault=f"its worker was lost: {how}", is_lost=True)
        if task is None and result:
            raise FinetuneKitError(result)
        return Outcome(None) if task is None else result

    def _answer_questions(self, tasks: Sequence[Any]) -> None:
        if self._mailbox is None or self._answer is None:
            return
        for key, number, message in self._ray.get(self._mailbox.take.remote()):
            self._mailbox.answer.remote(key, self._answer(tasks[number], message))


class _Actor:
    """A worker, where it is."""

    def __init__(self, prepare: Prepare, num_threads: int, mailbox: Any) -> None:
        import torch

        torch.set_num_threads(num_threads)
        self._mailbox = mailbox
        self._fault = ""
        try:
            self._job = prepare()
        except Exception as error:
            self._fault = one_line(error, with_type=not isinstance(error, FinetuneKitError))

    def fault(self) -> str:
        """Return why it can't work, or nothing."""
        return self._fault

    def do(self, number: int, task: Any) -> Outcome:
        """Do a task."""

        def ask(message: Any) -> Any:
            if self._mailbox is None:
                return None
            import ray

            return ray.get(self._mailbox.ask.remote(number, message))

        return done(self._job, task, ask)


class _Mailbox:
    """Takes questions from workers to the process that hands out the tasks, and brings its answers back."""

    def __init__(self) -> None:
        self._questions: list[tuple[int, int, Any]] = []
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._number = 0

    async def ask(self, number: int, message: Any) -> Any:
        """Ask about a task; return the answer once it is there."""
        self._number += 1
        key = self._number
        self._answers[key] = asyncio.get_running_loop().create_future()
        self._questions.append((key, number, message))
        return await self._answers[key]

    async def take(self) -> list[tuple[int, int, Any]]:
        """Return the questions that nobody has looked at, with key and number of the task, and forget them."""
        questions, self._questions = self._questions, []
        return questions

    async def answer(self, key: int, value: Any) -> None:
        """Answer a question."""
        self._answers.pop(key).set_result(value)
