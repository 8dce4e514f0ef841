"""What `ftkit compare` does: strategies × seeds on one dataset, as a table with paired tests.

python examples/03_compare.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from finetune_kit.comparison.compare import compare
from finetune_kit.comparison.plan import Comparison
from finetune_kit.comparison.results import Results
from finetune_kit.comparison.tables import main_tables, pair_tables


def main(steps: int = 5, users: int = 300, folder: Path | None = None) -> Results:
    """Fine-tune each for at most ``steps`` epochs on so many made-up users; print the tables, return the results."""
    sections = {
        "data": {"users": users, "max_length": 20},
        "backbone": {"dim": 16, "num_blocks": 2},
        "pretrain": {"epochs": steps},
        "finetune": {"epochs": steps, "learning_rate": 0.01},
    }
    comparison = Comparison(["finetune-cls", "finetune-all", "uaf-hard"], seeds=[0, 1], sections=sections)
    results = compare(comparison, (folder or Path(tempfile.mkdtemp())) / "compare")
    for table in [*main_tables(results), *pair_tables(results)]:
        print(table.to_markdown())
    return results


if __name__ == "__main__":
    main()
