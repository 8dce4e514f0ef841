"""No other process: tasks are done in this one, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

from finetune_kit.workers.outcome import LATER, NO_MORE, Outcome, Prepare, Supply, done


@dataclass(frozen=True)
class Here:
    """This process as its own only worker."""

    num_workers: int = 1

    def carry_out(
        self, prepare: Prepare, tasks: Iterable[Any], answer: Callable[[Any, Any], Any] | None = None
    ) -> Generator[Outcome, None, None]:
        """Do tasks as `Workers.carry_out` says; what ``prepare`` raises is raised as it is."""
        supply, job = Supply(tasks), None
        while (task := supply.take()) is not NO_MORE:
            assert task is not LATER, "nothing is in hand that could bring news"
            job = job or prepare()
            yield done(job, task, _Ask(task, answer))


@dataclass(frozen=True)
class _Ask:
    task: Any
    answer: Callable[[Any, Any], Any] | None

    def __call__(self, message: Any) -> Any:
        return None if self.answer is None else self.answer(self.task, message)

    def tell(self, message: Any) -> None:
        self(message)
