"""What workers are asked to do in tests; imports little, as every worker imports it."""

import os
import signal
from collections.abc import Callable

from finetune_kit.errors import FinetuneKitError


def calculator(offset: int) -> Callable:
    """Prepare: with an offset, do what a task's name says."""
    made_in = os.getpid()

    def do(task, ask):
        name, number = task
        if name == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "refuse":
            raise FinetuneKitError(f"{number} is refused")
        if name == "crash":
            raise RuntimeError(f"{number} crashed")
        if name == "ask":
            return ask(number) + offset
        if name == "tell":
            for k in range(number):
                ask.tell(k)
        if name == "plugins":
            return os.environ.get("FTKIT_PLUGINS")
        if name == "where":
            return made_in, os.getpid()
        return number + offset

    return do


def broken() -> Callable:
    raise FinetuneKitError("there is no model")


def dying() -> Callable:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
