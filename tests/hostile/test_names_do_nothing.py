"""Names of datasets, users, items, strategies, labels are anybody's: in terminals, pages and tables they are text."""

import io
import json
import re
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from documents import ROOT
from finetune_kit.cli import output
from finetune_kit.comparison.results import Results, Setting
from finetune_kit.comparison.table import TableData, latex, markdown
from finetune_kit.comparison.write import write_tables
from finetune_kit.foreign import visible, visible_json
from finetune_kit.report import write_report
from finetune_kit.report.picture import Picture

EVIL = "[red]x[/] [link=http://e]y[/] :bomb: \x1b[2J\x1b]0;a\x07 \x9b31m \u202etxt </script><script>alert(1)</script>"
"""Markup, emoji codes, escape sequences of terminals, text turned round, tags."""
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What acts on a terminal, but for the end of a line."""


@given(st.text(st.characters()))
def test_text_made_visible_has_nothing_that_acts_and_can_be_printed(text):
    shown = visible(text)
    assert not OBEYED.search(shown)
    assert "\n" not in shown
    shown.encode("utf-8")
    if not OBEYED.search(text) and "\n" not in text and not re.search("[\ud800-\udfff]", text):
        assert shown == text


@settings(max_examples=50)
@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_made_visible_says_the_same(value):
    shown = visible_json(json.dumps(value, ensure_ascii=False, indent=2))
    assert json.loads(shown) == value
    assert not OBEYED.search(shown)


def test_what_is_made_visible_can_be_read():
    assert visible("a\x1b[31m\r\n\u202e\udcff") == r"a\x1b[31m\r\n\u202e\udcff"
    assert visible("a\nb\tc", keep="\n") == "a\nb\\tc"
    assert visible("naïve 日本 − ±") == "naïve 日本 − ±"


def printed(monkeypatch, show, terminal: bool) -> str:
    """Return what a function prints on stdout, as a terminal or a pipe gets it."""
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", stream)
    show()
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("place", ["line", "cell", "title", "head", "text"])
def test_a_name_is_printed_as_it_is_wherever_it_stands(monkeypatch, place, terminal):
    from rich.text import Text

    def show() -> None:
        if place in ("line", "text"):
            output.stdout().print(EVIL if place == "line" else Text(EVIL))
            return
        made = output.table(EVIL if place == "title" else "", EVIL if place == "head" else "column")
        made.add_row(EVIL if place == "cell" else "x")
        output.stdout().print(made)

    text = re.sub(r"\x1b\[[0-9;]*m", "", printed(monkeypatch, show, terminal))  # rich's own colours
    assert not OBEYED.search(text)
    wanted = visible(EVIL if place != "text" else EVIL.replace("\x07", ""))  # rich's own texts drop the bell
    assert "".join(wanted.split()) in "".join(text.split())  # titles are folded


def test_a_warning_says_a_name_as_it_is(capsys):
    output.warn(EVIL)
    assert capsys.readouterr().err == f"warning: {visible(EVIL)}\n"


def test_an_error_says_a_name_as_it_is(ftkit, tmp_path):
    folder = f"no \x1b[2J [red]{'x' * 9}"
    done = ftkit("data", "inspect", folder)
    assert done.code == 2
    assert done.err == f"ftkit: no dataset folder at {visible(folder)}; make one with `ftkit data prepare`\n"


EVIL_NAME = "[red]e\x1b[2J\u202e<b>"


def test_a_dataset_of_a_hostile_name_and_label_is_shown_as_it_is(ftkit, tmp_path):
    (tmp_path / "s.csv").write_text("user,item,time\na,i,1\nb,j,2\n")
    (tmp_path / "t.csv").write_text("user,item,time\na,p,3\nb,q,4\n")
    (tmp_path / "l.csv").write_text(f"user,{EVIL_NAME}\na,{EVIL_NAME}\nb,other\n")
    files = ["--source", "s.csv", "--target", "t.csv", "--labels", "l.csv"]
    prepared = ftkit("data", "prepare", "events", *files, "--output", EVIL_NAME.replace("/", ""))
    assert prepared.code == 0, prepared
    shown, told = ftkit("data", "inspect", EVIL_NAME), ftkit("data", "inspect", EVIL_NAME, "--json")
    for text in (prepared.out, prepared.err, shown.out, told.out):
        assert not OBEYED.search(text)
    assert visible(EVIL_NAME) in shown.out
    facts = json.loads(told.out)
    assert facts["name"] == EVIL_NAME
    assert facts["labels"] == {EVIL_NAME: {EVIL_NAME: 1, "other": 1}}


def test_hostile_users_and_items_are_recommended_as_they_are(ftkit, tmp_path, sent):
    (tmp_path / "in.jsonl").write_text(json.dumps({"user": EVIL, "items": [EVIL]}) + "\n")
    done = ftkit("recommend", sent.run, "--input", "in.jsonl", "--output", "out.jsonl")
    assert done.code == 0, done
    assert not OBEYED.search(done.out + done.err)
    assert json.loads((tmp_path / "out.jsonl").read_text())["user"] == EVIL


def test_markdown_and_latex_have_no_tags_links_or_lines_of_a_names_own():
    name = "<img src=x onerror=alert(1)> [a](javascript:b) <0.0001 | \n# head \x1b[2J"
    assert markdown(name) == r"&lt;img src=x onerror=alert(1)> [a]\(javascript:b) <0.0001 | \n# head \x1b[2J"
    table = TableData(name, (name, name), ((name, name),), {(0, 1): "best"})
    lines = table.to_markdown().splitlines()
    assert len(lines) == 5
    assert not re.search(r"<(?=[A-Za-z/!?])", table.to_markdown())
    assert lines[2].replace(r"\|", "").count("|") == 3
    assert r"\input" not in latex(r"\input{/etc/passwd}")
    assert "\n" not in latex(name)


def hostile_results(folder) -> Results:
    from report_runs import made_up, synthetic

    settings = (Setting(EVIL), Setting("gated" + EVIL, f"strategy.policy={EVIL}"))
    results = made_up(folder, synthetic(folder / "ds"), settings, notes=(EVIL,))
    return Results(EVIL, results.task, results.runs, results.notes)


def test_a_report_shows_hostile_names_as_text(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "report"))
    monkeypatch.setattr(Picture, "write", lambda self, folder: b"<svg/>")  # drawn below
    results = hostile_results(tmp_path)
    page = write_report(results, tmp_path / "out").read_text(encoding="utf-8")
    assert "<script" not in page.lower()
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in page
    write_tables(results, tmp_path / "out")
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert not OBEYED.search(text)


@pytest.mark.slow
def test_pictures_show_hostile_names_as_text(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "report"))
    write_report(hostile_results(tmp_path), tmp_path / "out")
    pictures = list((tmp_path / "out" / "pictures").glob("*.svg"))
    assert pictures
    for picture in pictures:
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(picture).iter()}
        assert "script" not in tags
        assert "<script" not in picture.read_text(encoding="utf-8")
