import json
import re
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from documents import ROOT, TINY, blocks, check_console, run_command
from finetune_kit import hookspecs, plugins
from finetune_kit.data.dataset import Dataset
from finetune_kit.plugins import GROUP, KINDS, Plugins

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("ftkit_"))
REFERENCE = "docs/plugin-hooks.md"


def section(hook: str) -> str:
    return (ROOT / REFERENCE).read_text(encoding="utf-8").split(f"\n## {hook}() ")[1].split("\n## ")[0]


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
        (tmp_path / f"{name}.py").write_text(re.findall(r"```python\n(.*?)```", section(hook), re.DOTALL)[0])
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        entry = EntryPoint("example", name, GROUP)
        monkeypatch.setattr(plugins, "entry_points", lambda group: [*entry_points(group=group), entry])
        plugins.installed.cache_clear()
        return entry

    return install


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_its_signature_a_sentence_and_a_plugin_that_loads(hook, example):
    assert section(hook).startswith("→ Iterable[Component]\n\nCalled when ")
    host = Plugins(found=[example(hook)])
    assert not host.failures
    assert host.loaded[0].hooks == (hook,)


def test_the_reference_has_no_hook_that_does_not_exist():
    text = (ROOT / REFERENCE).read_text(encoding="utf-8")
    assert sorted(re.findall(r"^## (ftkit_\w+)\(\)", text, re.MULTILINE)) == HOOKS
    assert {f"ftkit_{plural}" for plural in KINDS.values()} == set(HOOKS)


@pytest.mark.parametrize(
    ("hook", "arguments"),
    [
        ("ftkit_strategies", ["--strategy", "l2-sp", "--set", "strategy.weight=0.1", *TINY]),
        ("ftkit_backbones", ["--strategy", "uaf-hard", "--backbone", "running-mean", *TINY]),
        ("ftkit_policies", ["--strategy", "uaf-hard", "--set", "strategy.policy=length", *TINY]),
        ("ftkit_trackers", ["--strategy", "finetune-cls", "--set", "run.trackers=csv", *TINY]),
    ],
)
def test_the_example_of_a_hook_takes_part_in_a_run(hook, arguments, ftkit, example):
    example(hook)
    result = json.loads(ftkit("ftkit run --epochs 2 --output out --json", arguments))
    assert result["epochs"] == 2
    if hook == "ftkit_trackers":
        assert Path("out/progress.csv").read_text().startswith("finetune,1,")
    assert json.loads(ftkit("ftkit evaluate out --json"))["test"] == result["test"]


def test_the_example_of_a_reader_prepares_a_dataset(ftkit, example):
    example("ftkit_datasets")
    Path("users.jsonl").write_text('{"user": "ann", "source": ["x", "y", "x"], "target": ["p"]}\n' * 1)
    assert ftkit("ftkit data prepare json-lines users.jsonl --output out").startswith("prepared out: 1 users, 3 source")
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


DOCUMENTS = ["tutorial", "data", "recommend", "wrapping", "backbones"]


@pytest.mark.parametrize("document", [f"docs/{name}.md" for name in DOCUMENTS])
def test_every_block_of_a_document_runs_and_prints_what_it_shows(document, ftkit, write_module):
    for language, block in blocks(document, "python", "console"):
        if language == "python" and (named := re.match(r"# (\w+)\.py\n", block)):
            write_module(named[1], block)
        elif language == "python":
            exec(compile(block, document, "exec"), {"__name__": "__main__"})
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
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists() or target == "docs/results.md", f"{path.name}: {target}"
