"""Plugins are code: which are imported can be seen and restricted, and one that is left out is not imported at all."""

import itertools
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from sent_files import assert_refused

from finetune_kit import plugins
from finetune_kit.errors import UnknownNameError
from finetune_kit.plugins import GROUP, Plugins

_NUMBERS = itertools.count()


@pytest.fixture
def marking(tmp_path):
    """Return a folder in which a distribution ``ftkit-marking`` is installed, whose import leaves ``mark`` there."""
    site, about = tmp_path / "site", tmp_path / "site" / "ftkit_marking-1.5.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ftkit_marking\nVersion: 1.5\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\nmarking = ftkit_marking.inner\n")
    package = site / "ftkit_marking"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(site / 'mark')!r}, 'w').close()\n")
    (package / "inner.py").write_text(
        "from finetune_kit import Component, hookimpl\n\n\n@hookimpl\ndef ftkit_strategies():\n"
        "    return [Component('marking', 'Marks', 'json:JSONDecoder')]\n"
    )
    return site


def listed(site, *words: str, only: str | None = None) -> dict[str, dict]:
    """Return what `ftkit … plugins list --json` says in a process of its own, by plugin."""
    environment = {name: value for name, value in os.environ.items() if name != plugins.ONLY}
    environment["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, sys.path)])
    environment |= {} if only is None else {plugins.ONLY: only}
    command = [
        sys.executable,
        "-c",
        "from finetune_kit.cli.main import main; main()",
        *words,
        "plugins",
        "list",
        "--json",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {plugin["name"]: plugin for plugin in json.loads(done.stdout)}


def test_the_list_says_what_is_loaded_from_where(marking):
    shown = listed(marking)
    assert shown["marking"] == {
        "name": "marking",
        "module": "ftkit_marking.inner",
        "distribution": "ftkit_marking",
        "version": "1.5",
        "hooks": ["ftkit_strategies"],
        "failure": None,
        "file": str(marking / "ftkit_marking" / "__init__.py"),
        "is_left_out": False,
    }
    assert (marking / "mark").exists()
    assert shown["uaf"]["file"].endswith("ftkit_uaf/__init__.py")


@pytest.mark.parametrize(("words", "only"), [([], ""), ([], "finetune-kit"), (["--no-plugins"], "ftkit-marking")])
def test_a_plugin_that_is_left_out_is_not_imported(marking, words, only):
    shown = listed(marking, *words, only=only)
    assert not (marking / "mark").exists()
    assert shown["marking"]["is_left_out"]
    assert shown["marking"]["file"] == str(marking / "ftkit_marking" / "__init__.py")
    assert {name for name, plugin in shown.items() if not plugin["is_left_out"]} >= {"uaf", "baselines", "datasets"}


def test_a_plugin_whose_distribution_is_named_is_imported(marking):
    assert not listed(marking, only="Ftkit.Marking")["marking"]["is_left_out"]
    assert (marking / "mark").exists()


def entry(name: str, module: str, distribution: str) -> EntryPoint:
    made = EntryPoint(name, module, GROUP)
    vars(made)["dist"] = SimpleNamespace(name=distribution, version="1")
    return made


FOUND = [entry("mine", "no_such_module_of_mine", "ftkit-mine"), entry("uaf", "ftkit_uaf", "finetune-kit")]


def test_an_unknown_distribution_is_refused_with_what_was_meant():
    with pytest.raises(UnknownNameError, match=r"FTKIT_PLUGINS: no .* named 'ftkit-mime'. Did you mean 'ftkit-mine'"):
        Plugins(FOUND, only=["ftkit-mime"])


def test_the_command_line_says_so_in_one_line(ftkit, monkeypatch):
    monkeypatch.setenv(plugins.ONLY, "finetune-kid")
    monkeypatch.setattr(plugins, "installed", plugins.installed.__wrapped__)
    assert_refused(ftkit("strategies"), "FTKIT_PLUGINS", "Did you mean 'finetune-kit'")


def test_a_component_of_a_plugin_that_was_left_out_is_explained():
    host = Plugins(FOUND, only=[])
    assert [plugin.name for plugin in host.left_out] == ["mine"]
    assert not host.failures
    with pytest.raises(UnknownNameError, match="left out by --no-plugins or FTKIT_PLUGINS: 'mine'"):
        host.component("strategy", "mine")


def test_two_plugins_of_one_name_can_be_told_apart_by_their_distribution():
    other = entry("mine", "no_such_module_of_theirs", "ftkit-theirs")
    (failed,) = Plugins([*FOUND, other], only=["ftkit-theirs"]).failures
    assert failed.distribution == "ftkit-theirs"
