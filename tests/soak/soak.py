"""Goes through the parts of the soak until the time is up, and prints what was survived; `make soak` runs it for long.

Run it as ``python tests/soak/soak.py --minutes 60 [--seed N] [--parts kills,inputs]``. It ends with exit code 1 at the
first defect, and says with which seed that comes again.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
PARTS = ("kills", "inputs", "seeds")
"""Modules beside this one, each with ``soak(deadline, random, folder)``, which returns what it counted."""


def main() -> int:
    """Run all parts in turn, each with an even share of the time; return the exit code."""
    arguments = _arguments()
    sys.path.insert(0, str(HERE))
    parts = arguments.parts.split(",")
    print(f"soak: {', '.join(parts)} for {arguments.minutes:g} minutes, seed {arguments.seed}", flush=True)
    began, counts = time.monotonic(), Counter[str]()
    end = began + 60 * arguments.minutes
    for number, part in enumerate(parts):
        now = time.monotonic()
        deadline = now + (end - now) / (len(parts) - number)
        try:
            with tempfile.TemporaryDirectory() as folder:
                drawn = random.Random(f"{arguments.seed}/{part}")
                found = importlib.import_module(part).soak(deadline, drawn, Path(folder))
        except Exception:  # whatever it is, it is a defect
            traceback.print_exc()
            print(
                f"soak: {part} found a defect; --parts {part} --seed {arguments.seed} draws the same again", flush=True
            )
            return 1
        counts += Counter({f"{part}: {name}": count for name, count in found.items()})
        print(f"{part}: " + ", ".join(f"{count:,} {name}" for name, count in sorted(found.items())), flush=True)
    print(f"soak: no defect in {(time.monotonic() - began) / 60:.1f} minutes; {counts.total():,} counted")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="draws what is tried; by default another one each time")
    parser.add_argument("--parts", default=",".join(PARTS))
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(10_000)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
