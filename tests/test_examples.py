import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from documents import ROOT

EXAMPLES = ROOT / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_from_python_gives_metrics_and_a_run_folder(tmp_path):
    metrics = load("01_run_from_python").main(steps=1, users=60, folder=tmp_path)
    assert metrics["epochs"] == 1
    assert (tmp_path / "run" / "metrics.json").exists()


def test_an_own_strategy_learns():
    losses = load("02_own_strategy").main(steps=60)
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("04_wrap_transformer_encoder", "torch"),
        ("05_wrap_gpt2", "transformers"),
        ("06_wrap_recbole", "recbole.model.sequential_recommender.sasrec"),
    ],
)
def test_a_wrapped_model_learns(name, library):
    pytest.importorskip(library)
    losses = load(name).main(steps=60)
    assert losses[-1] < losses[0] - 0.2


def test_the_plugin_s_own_test_passes():
    folder = EXAMPLES / "ftkit-bitfit"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        "test_bitfit.py",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_every_example_stands_in_the_table(path: Path):
    if path.name not in ("README.md", "__pycache__"):
        assert path.name in (EXAMPLES / "README.md").read_text()


def test_every_example_in_the_table_is_there():
    table = (EXAMPLES / "README.md").read_text()
    for path in re.findall(r"examples/[\w./-]+\w", table):
        assert (ROOT / path).exists(), path
