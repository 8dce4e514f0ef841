"""Configuration: TOML files and ``--set``."""

from pathlib import Path
from random import Random

from mutations import TEXT, VALUES, replace_value
from readers import Reader

from finetune_kit.cli.arguments import read_sections
from finetune_kit.config import resolve_config

CONFIG = """[run]
strategy = "uaf-soft"
backbone = "nextitnet"
data = "synthetic"
seed = 3
trackers = ["jsonl"]

[data]
max_length = 20
users = 100

[backbone]
dim = 16
dilations = [1, 2]

[finetune]
epochs = 2
learning_rate = 1e-3

[evaluation]
cutoffs = [5, 10]
protocols = ["full"]

[strategy]
policy = "conv"
policy_options = {kernel_size = 3}

[files]
dataset = "somewhere"
dataset_fingerprint = "abc"
"""


def write_config(folder: Path, random: Random) -> list[Path]:
    (folder / "config.toml").write_text(CONFIG)
    return [folder / "config.toml"]


def _read_config(folder: Path, random: Random) -> None:
    resolve_config(read_sections(folder / "config.toml", None, {"strategy": None}))


SETTINGS = ["run.strategy=uaf-hard", "strategy.temperature=5", "data.max_length=20", "evaluation.cutoffs=5,10"]
SETTINGS += [
    "strategy.policy_options.dim=8",
    "finetune.batch_size=32",
    "pretrain.loss=softmax",
    "run.seed=1",
    "data.users=90",
]


def _write_setting(folder: Path, random: Random) -> list[Path]:
    (folder / "settings").write_text("\n".join([*random.sample(SETTINGS, 3), "run.data=synthetic"]))
    return [folder / "settings"]


def _read_setting(folder: Path, random: Random) -> None:
    path = folder / "settings"
    text = path.read_bytes().decode("utf-8", errors="surrogateescape") if path.is_file() else ""
    lines = [line[:100_000] for line in text.split("\n")[:20]]
    flags = random.choice(
        [{}, {}, {}, {"strategy": random.choice(VALUES)}, {"data": random.choice(VALUES)}, {"epochs": 2}]
    )
    resolve_config(read_sections(None, lines, flags))


READERS = [
    Reader("configuration", write_config, _read_config, TEXT, 8),
    Reader("--set", _write_setting, _read_setting, [*TEXT, *[replace_value] * 8], 8),
]
