"""Fuzzes every reader: small valid files, spoiled, are read whole or refused in one line, never anything else.

``python tests/soak/inputs.py "events .csv" 1234`` does one input again, the one of that reader and seed.
"""

import logging
import random as randomness
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import event_logs
import histories
import published
import settings
from folders import folder_readers
from mutations import spoil
from processes import process_readers
from readers import Reader

from finetune_kit.cli.time_limit import time_limit
from finetune_kit.errors import FinetuneKitError

READERS = [*event_logs.READERS, *published.READERS, *histories.READERS, *settings.READERS]
PROCESSES = 0.02
"""Share of the inputs that are given to a process of `ftkit`, which takes seconds to start."""
LIMIT = 60.0
"""Seconds within which an input must be read or refused; what is usual is a tenth of one, in a process some."""


class Hung(BaseException):
    """An input took too long; no reader may catch it."""


def soak(deadline: float, random: randomness.Random, folder: Path) -> dict[str, int]:
    """Fuzz until `time.monotonic` reaches the deadline, each reader at least once; return inputs by reader and outcome.

    Raises:
        AssertionError: For a defect; names reader and seed.
    """
    counts: Counter[str] = Counter()
    first = all_readers(folder)
    processes = [reader for reader in first if reader.name.startswith("ftkit ")]
    quick = [reader for reader in first if reader not in processes for _ in range(reader.weight)]
    while first or time.monotonic() < deadline:
        chosen = processes if random.random() < PROCESSES else quick
        reader = first.pop() if first else random.choice(chosen)
        with silent():
            outcome = fuzz(reader, random.getrandbits(32), folder)
        counts[f"{reader.name}: {outcome}"] += 1
    return dict(sorted(counts.items()))


@contextmanager
def silent() -> Iterator[None]:
    """Let nothing be logged of what is dropped: it is counted here."""
    logger = logging.getLogger("finetune_kit")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def all_readers(folder: Path) -> list[Reader]:
    """Return everything under test; what it needs is made below a folder."""
    return [*READERS, *folder_readers(folder), *process_readers(folder)]


def fuzz(reader: Reader, seed: int, folder: Path) -> str:
    """Read one spoiled input; return ``"read"`` or ``"refused"``."""
    place = folder / f"input-{seed}"
    place.mkdir(parents=True)
    random = randomness.Random(seed)
    files = reader.write(place, random)
    if random.random() < 0.95:  # and now and then one that is whole
        spoil(random.choice(files), random, reader.mutations)
    try:
        with time_limit(LIMIT, Hung):
            outcome = _outcome(reader, place, random)
    except BaseException as error:
        raise AssertionError(
            f"{reader.name}: {type(error).__name__}: {str(error)[:1000]}; the input is in {place}; again by: "
            f'python tests/soak/inputs.py "{reader.name}" {seed}'
        ) from error
    shutil.rmtree(place)
    return outcome


def _outcome(reader: Reader, place: Path, random: randomness.Random) -> str:
    before = {path.name for path in place.iterdir()}
    try:
        reader.read(place, random)
    except FinetuneKitError as error:
        message = str(error)
        assert message, "an error without a word"
        assert message.isprintable(), f"not one printable line: {message!r}"
    except OSError as error:  # the command line tells it in one line, if there is something to tell
        assert error.strerror, repr(error)
    else:
        return "read"
    left = {path.name for path in place.iterdir()} - before
    assert not left, f"left behind by an input that was refused: {left}"
    return "refused"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        known = {reader.name: reader for reader in all_readers(root)}
        print(fuzz(known[sys.argv[1]], int(sys.argv[2]), Path(tempfile.mkdtemp(prefix="input-"))))
