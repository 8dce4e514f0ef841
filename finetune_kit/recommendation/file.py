"""From a file of histories to a file of recommendations, as a stream."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from finetune_kit.files import appearing
from finetune_kit.recommendation.histories import read_histories
from finetune_kit.recommendation.layout import Layout
from finetune_kit.recommendation.recommender import Recommendation, Recommender
from finetune_kit.recommendation.workshop import Workshop
from finetune_kit.recommendation.writers import writing

logger = logging.getLogger("finetune_kit.recommendation")
"""What it is doing (info); the command line shows it on stderr."""
SAY_EVERY = 10.0
"""Seconds between two words on how far it is."""


@dataclass
class Totals:
    """What was read and written.

    Args:
        users: Users read; one who stands in the input twice counts twice.
        without_history: Those without a known item, who got no recommendation.
        all_seen: Those who have seen all items.
        recommended: Items written.
        events: Source events read.
        unknown_events: Those of items that the run does not know.
        seconds: How long it took.
    """

    users: int = 0
    without_history: int = 0
    all_seen: int = 0
    recommended: int = 0
    events: int = 0
    unknown_events: int = 0
    seconds: float = 0.0

    def add(self, one: Recommendation) -> None:
        """Count one more user."""
        self.users += 1
        self.recommended += len(one.items)
        self.events += one.num_events
        self.unknown_events += one.num_unknown
        if not one.items:
            if one.num_events > one.num_unknown:
                self.all_seen += 1
            else:
                self.without_history += 1

    @classmethod
    def sum(cls, parts: Iterable[Totals]) -> Totals:
        """Return the sums of several; of the seconds too, however many were worked at once."""
        every = list(parts)
        return cls(**{field.name: sum(getattr(part, field.name) for part in every) for field in fields(cls)})


def recommend_file(
    recommender: Recommender,
    layout: Layout,
    output: Path,
    workshop: Workshop,
    batch_size: int = 512,
    watch: Callable[[Recommendation], None] = lambda one: None,
) -> Totals:
    """Write the recommendations for a file's users; the output appears whole or not at all.

    Args:
        recommender: Makes them.
        layout: The input.
        output: The file to write; replaced if it is there.
        workshop: For what must be sorted or collected on disk.
        batch_size: Users scored at once.
        watch: Called with each recommendation once it is written.

    Raises:
        DataError: For input that can't be read.
        CheckpointError: When the run's scores are not numbers.
    """
    began = time.perf_counter()
    totals = Totals()
    logger.info("reading %s", layout.path if layout.is_per_user else f"and sorting {layout.path}")
    with appearing(output) as partial, writing(output, partial, recommender.answers, workshop) as write:
        histories = read_histories(layout, workshop)
        for one in _told(recommender.stream(histories, batch_size)):
            totals.add(one)
            write(one)
            watch(one)
        logger.info("writing %s", output)
    totals.seconds = time.perf_counter() - began
    return totals


def _told(recommendations: Iterator[Recommendation]) -> Iterator[Recommendation]:
    """Pass recommendations on; say now and then how many there were."""
    said = None
    for number, one in enumerate(recommendations, 1):
        yield one
        now = time.monotonic()
        said = now if said is None else said
        if now - said > SAY_EVERY:
            said = now
            logger.info("recommended for %s users", f"{number:,}")
