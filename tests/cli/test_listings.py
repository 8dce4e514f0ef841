import json
import subprocess
import sys

import pytest

from finetune_kit.cli import main as module
from finetune_kit.config import SECTIONS
from finetune_kit.plugins import installed


@pytest.fixture
def ftkit(monkeypatch, capsys):
    """Return a function that runs one command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ftkit", *arguments])
        with pytest.raises(SystemExit) as caught:
            module.main()
        return caught.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("command", "kind"), [("strategies", "strategy"), ("backbones", "backbone"), ("policies", "policy")]
)
def test_a_listing_names_every_installed_component(ftkit, command, kind):
    code, out, err = ftkit(command)
    assert (code, err) == (0, "")
    for name in installed().components(kind):
        assert f" {name} " in out
    rows = json.loads(ftkit(command, "--json")[1])
    assert [row["name"] for row in rows] == list(installed().components(kind))


@pytest.mark.parametrize(
    ("command", "name"), [("strategies", "uaf-hard"), ("backbones", "nextitnet"), ("policies", "conv")]
)
def test_show_prints_every_option_in_80_columns(ftkit, command, name):
    code, out, err = ftkit(command, "show", name)
    assert (code, err) == (0, "")
    assert max(len(line) for line in out.splitlines()) <= 80
    rows = json.loads(ftkit(command, "show", name, "--json")[1])["options"]
    assert rows
    for row in rows:
        assert f".{row['name']}   " in out


def test_show_prints_an_option_as_a_block(ftkit):
    assert (
        "  strategy.temperature   float in (0, ∞)   default 10.0\n"
        "      τ of Eq. 10: the larger, the more even the gradient between the two\n"
        "      actions.\n" in ftkit("strategies", "show", "uaf-hard")[1]
    )


def test_show_takes_a_preset_for_the_default(ftkit):
    assert "strategy.n   int in [1, ∞)   default 2" in ftkit("strategies", "show", "finetune-last2")[1]


def test_a_policy_s_options_are_shown_as_they_are_set(ftkit):
    assert (
        "  strategy.policy_options.mask_padding   true|false   default true\n" in ftkit("policies", "show", "conv")[1]
    )


def test_a_component_without_options_says_so(ftkit):
    assert "It has no options." in ftkit("strategies", "show", "finetune-all")[1]


def test_an_unknown_component_is_one_line_on_stderr(ftkit):
    code, out, err = ftkit("strategies", "show", "uaf-hrd")
    assert (code, out) == (2, "")
    assert err.startswith("ftkit: no strategy named 'uaf-hrd'. Did you mean 'uaf-hard'?")
    assert err.count("\n") == 1


def test_options_lists_the_sections_of_a_configuration(ftkit):
    code, out, _ = ftkit("options")
    assert code == 0
    assert all(f" {section} " in out for section in SECTIONS)
    assert [row["name"] for row in json.loads(ftkit("options", "--json")[1])] == list(SECTIONS)


@pytest.mark.parametrize("section", ["run", "data", "pretrain", "finetune", "evaluation"])
def test_options_shows_every_option_of_a_section(ftkit, section):
    code, out, err = ftkit("options", section)
    assert (code, err) == (0, "")
    assert max(len(line) for line in out.splitlines()) <= 80
    for row in json.loads(ftkit("options", section, "--json")[1])["options"]:
        assert f"  {section}.{row['name']}   " in out


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            "strategy",
            "ftkit: the options of strategy depend on which it is; see `ftkit strategies show NAME`\n",
        ),
        ("fintune", "ftkit: no section 'fintune'. Did you mean 'finetune'? Sections: run, data"),
    ],
)
def test_options_says_where_else_to_look(ftkit, section, message):
    code, out, err = ftkit("options", section)
    assert (code, out) == (2, "")
    assert err.startswith(message)


def test_plugins_list_shows_what_each_offers(ftkit):
    rows = {row["name"]: row for row in json.loads(ftkit("plugins", "list", "--json")[1])}
    assert rows["uaf"]["distribution"] == "finetune-kit"
    assert "ftkit_strategies" in rows["uaf"]["hooks"]
    assert all(row["failure"] is None for row in rows.values())
    assert " uaf " in ftkit("plugins", "list")[1]


def test_env_names_versions_and_plugins(ftkit):
    facts = json.loads(ftkit("env", "--json")[1])
    assert facts["python"]
    assert "uaf" in facts["plugins"]


def test_the_version_is_printed(ftkit):
    assert ftkit("--version")[:2] == (0, "0.1.0\n")


@pytest.mark.parametrize(
    "arguments", [("--help",), ("strategies",), ("policies", "--json"), ("options",), ("data", "prepare")]
)
def test_help_and_listings_import_nothing_slow(arguments):
    code = f"""
import sys
from finetune_kit.cli.main import main
sys.argv = ["ftkit", *{arguments!r}]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
slow = [name for name in ("torch", "numpy", "duckdb", "lightning_fabric", "scipy") if name in sys.modules]
sys.exit(", ".join(slow) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
