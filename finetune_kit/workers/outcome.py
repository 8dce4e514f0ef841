"""What workers are asked to do and what comes of it; nothing here knows where they run."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from finetune_kit.errors import FinetuneKitError, one_line


class Ask(Protocol):
    """What a job is handed to speak with whoever hands out the tasks."""

    def __call__(self, message: Any) -> Any:
        """Send a message and return the answer; None where nobody is there to answer any more."""

    def tell(self, message: Any) -> None:
        """Send a message that is not answered, and go on at once; of several, a later one may arrive first.

        Raises:
            KeyboardInterrupt: Where the worker was told to end.
        """


Job = Callable[[Any, Ask], Any]
"""Does one task; returns its result."""
Prepare = Callable[[], Job]
"""Called once in each worker, e.g. to load a model; returns what does the tasks there."""


class _Later:
    """The type of `LATER`."""


LATER: Final = _Later()
"""What an iterator of tasks yields while none is ready: it is asked again when one in hand has brought news."""
NO_MORE: Final = object()
"""What `Supply.take` returns at the end."""


@dataclass(frozen=True)
class Outcome:
    """What came of a task.

    Args:
        task: The task, as it was handed out.
        result: What the job returned; None where there is a fault.
        fault: Why there is no result, in one line; empty where there is one.
        where: The traceback, where the fault may be ours or a plugin's; else empty.
        is_lost: Whether the worker was lost, so that the same task might succeed in another.
    """

    task: Any
    result: Any = None
    fault: str = ""
    where: str = ""
    is_lost: bool = False


class Workers(Protocol):
    """Processes that do tasks."""

    def carry_out(
        self, prepare: Prepare, tasks: Iterable[Any], answer: Callable[[Any, Any], Any] | None = None
    ) -> Generator[Outcome, None, None]:
        """Do tasks, and yield what came of each as soon as it is there, in whatever order.

        Close what is returned (`contextlib.closing`), so that workers end at once when this process is interrupted.

        Args:
            prepare: Pickled into each worker and called there once.
            tasks: What to do; each is pickled, done by one worker, once. An iterator is asked for one when a worker is
                free; it may yield `LATER`.
            answer: Called here with a task and what its job asks or tells; returns the answer. None answers None.

        Raises:
            FinetuneKitError: When ``prepare`` failed, with its error's words.
        """


class Supply:
    """Tasks as they are taken, one by one."""

    def __init__(self, tasks: Iterable[Any]) -> None:
        self._tasks = iter(tasks)
        self.is_over = False

    def take(self) -> Any:
        """Return the next task, `LATER`, or `NO_MORE`."""
        task = NO_MORE if self.is_over else next(self._tasks, NO_MORE)
        self.is_over = task is NO_MORE
        return task


def done(job: Job, task: Any, ask: Ask) -> Outcome:
    """Return what comes of a task in this process; whatever its job raises becomes a fault."""
    try:
        return Outcome(task, job(task, ask))
    except FinetuneKitError as error:
        return Outcome(task, fault=str(error))
    except Exception as error:  # a third party's strategy may raise anything
        where = "".join(traceback.format_exception(error))
        return Outcome(task, fault=one_line(error, with_type=True)[:200], where=where)
