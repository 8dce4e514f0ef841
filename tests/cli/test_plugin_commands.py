import importlib.util
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from finetune_kit.cli.plugin_check import check
from finetune_kit.cli.scaffold import write_plugin
from finetune_kit.errors import OptionError, UnknownNameError
from finetune_kit.plugins import GROUP, Plugins, installed


def test_a_new_plugin_works_and_keeps_the_contract(tmp_path):
    write_plugin(tmp_path / "project", "my-method")
    dist_info = tmp_path / "project" / "ftkit_my_method-0.1.0.dist-info"  # as pip would write it
    dist_info.mkdir()
    (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: ftkit-my-method\nVersion: 0.1.0\n")
    (dist_info / "entry_points.txt").write_text(f"[{GROUP}]\nmy-method = ftkit_my_method\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "project")}
    main = [sys.executable, "-c", "from finetune_kit.cli.main import main; main()"]
    checked = subprocess.run(
        [*main, "plugins", "check", "my-method"], env=environment, capture_output=True, text=True, check=True
    )
    assert checked.stdout == "my-method: strategy my-method: fine\n"
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path / "project",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout


@pytest.mark.parametrize("name", ["My", "a b", "-x", "x_y", ""])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(OptionError, match="can't name a plugin"):
        write_plugin(tmp_path / "project", name)
    assert not (tmp_path / "project").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("dear")
    with pytest.raises(OptionError, match="holds something already"):
        write_plugin(tmp_path, "method")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_all_built_in_components_are_fine():
    assert [finding for finding in check(installed()) if finding.fault] == []


def test_an_unknown_plugin_is_named():
    with pytest.raises(UnknownNameError, match=r"no plugin named 'uav'. Did you mean 'uaf'\?"):
        check(installed(), "uav")


FAULTY = """
from finetune_kit import Component, Options, Strategy, hookimpl

class Plain:
    pass

class BareOptions(Options):
    rank: int = 1

class Bare(Strategy):
    Options = BareOptions

@hookimpl
def ftkit_strategies():
    return [
        Component("gone", "No such class", f"{__name__}:Gone"),
        Component("plain", "No strategy", f"{__name__}:Plain"),
        Component("bare", "Undocumented option", f"{__name__}:Bare"),
        Component("preset", "Unknown preset", f"{__name__}:Bare", {"rnk": 2}),
    ]
"""


def test_every_fault_is_said(tmp_path: Path, monkeypatch):
    (tmp_path / "faulty_plugin.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("faulty_plugin")
    faults = {
        finding.component: finding.fault
        for finding in check(Plugins([EntryPoint("faulty", "faulty_plugin", GROUP)]), "faulty")
    }
    assert "has no attribute 'Gone'" in faults["gone"]
    assert faults["plain"] == "faulty_plugin:Plain is no subclass of finetune_kit.Strategy"
    assert faults["bare"] == "option 'rank' lacks its docstring"
    assert "options that it does not have: rnk" in faults["preset"]


def test_a_new_plugin_may_not_take_an_installed_name(tmp_path):
    main = [sys.executable, "-c", "from finetune_kit.cli.main import main; main()"]
    done = subprocess.run(
        [*main, "plugins", "new", str(tmp_path / "project"), "--name", "uaf-hard"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("ftkit: a strategy named 'uaf-hard' is installed already")
    assert not (tmp_path / "project").exists()
