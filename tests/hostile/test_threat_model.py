"""Each line of the threat model in SECURITY.md names tests that are there."""

import ast
import re
from pathlib import Path

from documents import ROOT

TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", TEXT)


def written_in(path: Path) -> set[str]:
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def lines() -> list[list[str]]:
    """Return the cells of all lines of the tables, without heads."""
    rows = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.startswith("| ")]
    return [cells for cells in rows if cells[-1] not in ("shown by", "---")]


def test_every_test_that_is_named_is_there():
    there = {path.name: written_in(path) for path in Path(__file__).parent.glob("test_*.py")}
    assert len(NAMED) > 30
    assert [f"{file}::{name}" for file, name in NAMED if name not in there.get(file, ())] == []


def test_every_line_names_what_shows_it():
    assert len(lines()) >= 30
    for cells in lines():
        assert re.fullmatch(r"(`test_\w+\.py::test_\w+`(, )?)+", cells[-1]), cells


def test_every_test_but_those_of_tools_is_named():
    tools = {
        "test_the_search_finds_what_could_run_code",
        "test_the_payload_works",
        "test_text_made_visible_has_nothing_that_acts_and_can_be_printed",
        "test_what_is_made_visible_can_be_read",
        "test_a_json_file_may_nest_as_deep_as_ours_do",
        "test_measuring_leaves_random_numbers_and_devices_as_they_were",
        "test_what_names_no_folder_is_refused",
        "test_the_runs_of_a_comparison_may_lie_on_another_disk",
        "test_the_command_line_says_so_in_one_line",
        "test_a_component_of_a_plugin_that_was_left_out_is_explained",
        "test_two_plugins_of_one_name_can_be_told_apart_by_their_distribution",
    }
    there = {
        name for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__) for name in written_in(path)
    }
    assert there - {name for _, name in NAMED} == tools
