import json
import re

import pytest

from documents import ROOT, TINY, blocks, check_console, run_command
from finetune_kit.plugins import installed
from matrix import usual_backbone

SHORTER = {"run": [*TINY, "--epochs", "1"], "finetune": ["--epochs", "1"]}
"""What is added to a command, so that it takes seconds."""


@pytest.fixture
def ftkit(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    return lambda command, extra=None: run_command(command, monkeypatch, capsys, extra)


def test_every_command_of_the_readme_runs_and_prints_what_it_shows(ftkit):
    for _, block in blocks("README.md", "console"):
        check_console(block, lambda command: ftkit(command, SHORTER.get(command.split()[1])))


def test_every_python_block_of_the_readme_runs(ftkit, capsys):
    for _, block in blocks("README.md", "python"):
        assert len(block.splitlines()) <= 15
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    assert re.fullmatch(r"\d\.\d+ \d\.\d+\n", capsys.readouterr().out)


def rows() -> dict[str, str]:
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Strategies\n")[1].split("\n## ")[0]
    return {row.split("`")[1]: row for row in table.splitlines() if row.startswith("| `")}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", installed().components("strategy"))
def test_the_table_of_strategies_has_the_share_of_parameters_that_train(strategy, ftkit):
    command = f"ftkit run --strategy {strategy} --backbone {usual_backbone(strategy)} --dry-run --json"
    plan = json.loads(ftkit(command))
    share = f"{plan['trainable_parameters'] / plan['total_parameters']:.1%}".replace("%", " %")
    assert rows().get(strategy, "no row").endswith(f"| {share} |"), f"{strategy}: the share is {share}"


def test_the_table_of_strategies_has_no_row_too_many_and_none_too_few():
    assert rows().keys() == installed().components("strategy").keys()


def test_the_file_map_names_what_is_there():
    for line in (ROOT / "README.md").read_text(encoding="utf-8").split("## File map")[1].splitlines():
        folder = ""
        for path in re.findall(r"`([\w/*.]+)`", line.split("|")[1] if line.startswith("| `") else ""):
            folder = path.rpartition("/")[0] if "/" in path else folder
            assert list(ROOT.glob(path if "/" in path else f"{folder}/{path}")), path
