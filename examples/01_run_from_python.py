"""What `ftkit run --strategy uaf-hard` does: configuration, dataset, pre-training, fine-tuning, numbers.

python examples/01_run_from_python.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from finetune_kit import Dataset
from finetune_kit.config import resolve_config
from finetune_kit.data.named import resolve_dataset
from finetune_kit.training.device import make_fabric
from finetune_kit.training.run import Runner


def main(steps: int = 5, users: int = 300, folder: Path | None = None) -> dict[str, Any]:
    """Fine-tune for at most ``steps`` epochs on so many made-up users; return what ``metrics.json`` has."""
    folder = folder or Path(tempfile.mkdtemp())
    config = resolve_config(
        {
            "run": {"strategy": "uaf-hard", "data": "synthetic", "seed": 0},
            "data": {"users": users, "max_length": 20},
            "backbone": {"dim": 16, "num_blocks": 2},
            "pretrain": {"epochs": steps},
            "finetune": {"epochs": steps, "learning_rate": 0.01},
        }
    )
    dataset = Dataset.open(resolve_dataset(config.run.data, config.reader, folder / "cache"))
    runner = Runner(config, dataset, make_fabric(config.run.device, config.run.precision))
    base = runner.pretrain(folder / "pretrained")
    return runner.finetune(folder / "run", base)


if __name__ == "__main__":
    metrics = main()
    for name in ("mrr@5", "hr@5"):
        ours, popularity = metrics["test"]["full"][name], metrics["references"]["popularity"]["full"][name]
        print(f"{name}: uaf-hard {ours:.4f}, popularity {popularity:.4f}")
