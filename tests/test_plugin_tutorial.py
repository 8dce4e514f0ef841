import doctest
import re
from pathlib import Path

import pytest

from documents import FLAGS, ROOT, commands
from scratch import ScratchEnvironment

TUTORIAL = "docs/plugin-tutorial.md"
INSTEAD = {"python -m build": "python -m build --no-isolation"}
"""What is run in the place of a command that would need the network."""


def steps() -> list[tuple[str, str]]:
    """Return the tutorial's blocks in order: files to write, commands to run."""
    text = (ROOT / TUTORIAL).read_text(encoding="utf-8")
    return re.findall(r"^```(python|console)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_step_of_the_plugin_tutorial_works(tmp_path):
    environment, folder = ScratchEnvironment(tmp_path), tmp_path / "work"
    folder.mkdir()
    for language, block in steps():
        if language == "python":
            first, _, code = block.partition("\n")
            assert (folder / first.removeprefix("# ")).is_file(), f"{first} is not one of the project's files"
            (folder / first.removeprefix("# ")).write_text(code, encoding="utf-8")
            continue
        for command, shown in commands(block):
            if command.startswith("cd "):
                folder = folder / command.removeprefix("cd ")
                continue
            printed = environment.run(INSTEAD.get(command, command), folder)
            if shown:
                assert doctest.OutputChecker().check_output(shown, printed, FLAGS), f"$ {command}\n{printed}"


def test_the_plugin_tutorial_has_all_its_steps():
    run = [command for language, block in steps() if language == "console" for command, _ in commands(block)]
    for step in ("ftkit plugins new", "pip install -e .", "python -m pytest", "ftkit plugins check", "ftkit run"):
        assert any(command.startswith(step) for command in run), step
    assert "twine upload" in (ROOT / TUTORIAL).read_text(encoding="utf-8")
    assert Path(ROOT / "tests" / Path(__file__).name).name in (ROOT / TUTORIAL).read_text(encoding="utf-8")
