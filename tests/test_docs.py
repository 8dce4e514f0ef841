import json
import re
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

import finetune_kit.testing
from documents import ROOT, TINY, blocks, check_console, commands, run_command
from finetune_kit import hookspecs, plugins
from finetune_kit.cli.promises import CONTRACTS, promises_of
from finetune_kit.data.dataset import Dataset
from finetune_kit.plugins import GROUP, KINDS, Plugins

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("ftkit_"))
IN_A_RUN = ["ftkit_strategies", "ftkit_backbones", "ftkit_policies", "ftkit_trackers"]
"""Hooks whose component takes part in a run; a dataset reader comes before."""


def page(hook: str) -> Path:
    return ROOT / "docs" / "hooks" / f"{hook}.md"


def command_of(hook: str) -> str:
    ((_, block),) = blocks(f"docs/hooks/{hook}.md", "console")
    return commands(block)[0][0]


@pytest.fixture
def ftkit(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    yield lambda command, extra=None: run_command(command, monkeypatch, capsys, extra)
    plugins.installed.cache_clear()


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Return a function that makes the example of a hook an installed plugin, and returns its entry point."""

    def install(hook: str) -> EntryPoint:
        name = f"example_of_{hook}"
        (tmp_path / f"{name}.py").write_text(blocks(f"docs/hooks/{hook}.md", "python")[0][1])
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        entry = EntryPoint("example", name, GROUP)
        monkeypatch.setattr(plugins, "entry_points", lambda group: [*entry_points(group=group), entry])
        plugins.installed.cache_clear()
        return entry

    return install


def test_every_hook_has_its_page_in_the_index_and_its_test():
    assert sorted(path.stem for path in (ROOT / "docs" / "hooks").iterdir()) == HOOKS
    index = (ROOT / "docs" / "plugin-hooks.md").read_text(encoding="utf-8")
    assert re.findall(r"\(hooks/(\w+)\.md\)", index) == [f"ftkit_{plural}" for plural in KINDS.values()]
    assert {f"ftkit_{plural}" for plural in KINDS.values()} == set(HOOKS)
    assert sorted([*IN_A_RUN, "ftkit_datasets"]) == HOOKS, "each is tested below"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_its_signature_a_sentence_and_a_plugin_that_loads(hook, example):
    assert page(hook).read_text(encoding="utf-8").startswith(f"# {hook}() → Iterable[Component]\n\nCalled when ")
    host = Plugins(found=[example(hook)])
    assert not host.failures
    assert host.loaded[0].hooks == (hook,)


@pytest.mark.parametrize(("kind", "contract"), CONTRACTS.items())
def test_the_page_of_a_hook_lists_what_its_contract_checks(kind, contract):
    promises = re.findall(r"^\* (.*)$", page(f"ftkit_{KINDS[kind]}").read_text(encoding="utf-8"), re.MULTILINE)
    assert promises == list(promises_of(getattr(finetune_kit.testing, contract)).values())


@pytest.mark.parametrize("kind", CONTRACTS)
def test_the_example_of_a_hook_keeps_its_contract(kind, example, ftkit):
    example(f"ftkit_{KINDS[kind]}")
    findings = json.loads(ftkit("ftkit plugins check example --json"))
    assert not [finding for finding in findings if finding["state"] == "broken"]
    assert len([finding for finding in findings if finding["state"] == "kept"]) > 5


@pytest.mark.parametrize("hook", IN_A_RUN)
def test_the_example_of_a_hook_takes_part_in_the_run_on_its_page(hook, ftkit, example):
    example(hook)
    result = json.loads(ftkit(f"{command_of(hook)} --epochs 2 --json", TINY))
    assert result["epochs"] == 2
    if hook == "ftkit_trackers":
        assert Path("out/progress.csv").read_text().startswith("finetune,1,")
    assert json.loads(ftkit("ftkit evaluate out --json"))["test"] == result["test"]


def test_the_example_of_a_reader_prepares_a_dataset(ftkit, example):
    example("ftkit_datasets")
    Path("users.jsonl").write_text('{"user": "ann", "source": ["x", "y", "x"], "target": ["p"]}\n' * 1)
    assert ftkit(command_of("ftkit_datasets")).startswith("prepared out: 1 users, 3 source")
    assert Dataset.open(Path("out")).raw_source_items() == ["x", "y"]


@pytest.fixture
def write_module(monkeypatch, tmp_path):
    """Return a function that writes a module to import; one that is called ftkit_… is installed as a plugin."""
    monkeypatch.syspath_prepend(tmp_path)
    written: list[str] = []

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        entries = [EntryPoint(name, name, GROUP) for name in written if name.startswith("ftkit_")]
        monkeypatch.setattr(plugins, "entry_points", lambda group: [*entry_points(group=group), *entries])
        plugins.installed.cache_clear()

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "document",
    [
        *("backbones", "checkpoints", "data", "recommend", "tutorial", "wrapping"),
        pytest.param("export", marks=pytest.mark.slow),
    ],
)
def test_every_block_of_a_document_runs_and_prints_what_it_shows(document, ftkit, write_module):
    document, names = f"docs/{document}.md", {"__name__": "__main__"}
    for language, block in blocks(document, "python", "console"):
        if language == "python" and (named := re.match(r"# (\w+)\.py\n", block)):
            write_module(named[1], block)
        elif language == "python":
            exec(compile(block, document, "exec"), names)
        else:
            check_console(block, ftkit)


def test_what_the_check_of_wrap_says_is_what_the_document_explains():
    code = "".join(path.read_text() for path in sorted((ROOT / "finetune_kit" / "wrapping").glob("*.py")))
    said = re.sub(r'"\s+f?"', "", code)  # a sentence may be written in several pieces
    table = (ROOT / "docs/wrapping.md").read_text(encoding="utf-8").split("| it says |")[1].split("\n\n")[0]
    explained = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(explained) > 10
    assert [words for words in explained if words not in said] == []


def test_links_between_documents_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists() or target == "docs/results.md", f"{path.name}: {target}"
