"""Tasks done by several processes at once, on this machine (`local`) or on a Ray cluster (`cluster`).

Both kinds of workers do the same: what prepares a worker is called once in each, tasks are handed out one by one, and
a worker that is lost costs the task that it had in hand and no other.
"""

from __future__ import annotations

from finetune_kit.workers.here import Here
from finetune_kit.workers.local import LocalWorkers, share_of_cores
from finetune_kit.workers.outcome import LATER, Ask, Job, Outcome, Prepare, Workers

__all__ = ["LATER", "Ask", "Here", "Job", "LocalWorkers", "Outcome", "Prepare", "Workers", "share_of_cores"]
