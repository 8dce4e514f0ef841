"""What the tests against hostile files share: a dataset, a base and a run to spoil copies of, and a command line."""

import shutil
import sys
from pathlib import Path

import pytest
from sent_files import Done, Sent

from documents import TINY
from finetune_kit.cli import main as command_line


@pytest.fixture
def ftkit(monkeypatch, capsys, tmp_path):
    """Return a function that runs one command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["ftkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        return Done(caught.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """Return a folder with ``ds``, ``pretrained/…`` and ``run``, made once."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (
            ["data", "prepare", "synthetic", "--users", "100", "--output", "ds"],
            ["run", "--data", "ds", "--strategy", "uaf-hard", "--epochs", "1", "--output", "run", *TINY[2:]],
        ):
            patch.setattr(sys, "argv", ["ftkit", *line])
            with pytest.raises(SystemExit) as caught:
                command_line.main()
            assert caught.value.code == 0
    return folder


@pytest.fixture
def sent(made, tmp_path) -> Sent:
    """Return copies that a test may spoil."""
    shutil.copytree(made, tmp_path / "sent")
    folder = tmp_path / "sent"
    config = folder / "run" / "config.toml"
    config.write_text(config.read_text().replace(str(made.resolve()), str(folder.resolve())))
    (base,) = (folder / "pretrained").iterdir()
    for path in folder.rglob("checksums.json"):  # whoever sends files sends the checksums that fit, or none
        path.unlink()
    return Sent(folder / "ds", base, folder / "run")
