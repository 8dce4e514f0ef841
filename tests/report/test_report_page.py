import base64
import dataclasses
import re
import struct
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from report_runs import GATED, PLAIN, give_gates, made_up

from finetune_kit.comparison.control import control_notes
from finetune_kit.comparison.results import Setting
from finetune_kit.comparison.statistics import CAVEAT, test_pairs
from finetune_kit.comparison.summary import signed
from finetune_kit.data.dataset import Dataset
from finetune_kit.report import write_report
from finetune_kit.report.picture import Picture
from finetune_kit.report.words import sentences

EVIL = '<script>alert("x")</script>'


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes long: drawing."""
    monkeypatch.setattr(Picture, "write", lambda self, folder: f"<svg>{self.name}</svg>".encode())


KINDS = ("png", "svg")


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that they are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def addresses(page: str) -> set[str]:
    """Return the addresses that a page and the pictures inside it name."""
    inside = [base64.b64decode(data).decode() for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", page)]
    return {found for text in (page, *inside) for found in re.findall(r"https?://[^/\"]+", text)}


def test_a_report_is_one_page_with_all_pictures_and_needs_no_network(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, notes=("tuning budget: none",))
    path = write_report(results, tmp_path / "out")
    page = path.read_text(encoding="utf-8")
    tags = Tags(page)
    assert addresses(page) == {"http://www.w3.org"}
    assert all(
        (attributes["src"] or "").startswith("data:image/svg+xml;base64,") for attributes in tags.attributes("img")
    )
    assert all(attributes["alt"] for attributes in tags.attributes("img"))
    assert not tags.attributes("script")
    assert "prefers-color-scheme: dark" in page
    links = {attributes["href"] for attributes in tags.attributes("a")}
    assert links == {f"#{attributes['id']}" for attributes in tags.attributes("section")} - {"#reading"}
    names = ("curves", "metrics", "policy", "policy-by-kind", "policy-diversity", "wins")
    assert len(tags.attributes("img")) == len(names)
    pictures = path.parent / "pictures"
    assert sorted(file.name for file in pictures.iterdir()) == sorted(
        f"{name}.{kind}" for name in names for kind in KINDS
    )
    for name in names:
        assert len(list(ElementTree.fromstring((pictures / f"{name}.svg").read_bytes()).iter())) > 100
        width, height = struct.unpack(">II", (pictures / f"{name}.png").read_bytes()[16:24])
        assert min(width, height) > 150
    assert '<td class="best">' in page
    assert "tuning budget: none" in page


@pytest.mark.usefixtures("undrawn")
def test_a_page_is_the_same_each_time_whether_the_dataset_is_given_or_found(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset)
    path = write_report(results, tmp_path / "out")
    assert write_report(results, tmp_path / "again", dataset).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_names_are_shown_and_never_run(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, (Setting(EVIL), Setting("gated<i>")), seeds=(0,), notes=(EVIL,))
    page = write_report(dataclasses.replace(results, dataset=EVIL), tmp_path / "out").read_text(encoding="utf-8")
    tags = Tags(page)
    assert not tags.attributes("script")
    assert not tags.attributes("i")
    assert "&lt;script&gt;alert" in page


@pytest.mark.usefixtures("undrawn")
def test_a_collapsed_policy_is_said_in_words(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, seeds=(0,))
    give_gates(results, GATED, np.tile([1.0, 0.0, 0.0, 1.0], (60, 1)))
    page = write_report(results, tmp_path / "out").read_text(encoding="utf-8")
    assert "<li>gated, seed 0: all 60 users take the same blocks: 1 0 0 1 (fine-tuned: blocks 1, 4)</li>" in page


@pytest.mark.usefixtures("undrawn")
def test_one_row_of_one_seed_is_enough(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, (PLAIN,), seeds=(0,))
    page = write_report(results, tmp_path / "out").read_text(encoding="utf-8")
    assert "with one seed." in page
    assert "Policies" not in page
    assert "Who wins where" not in page


@pytest.mark.usefixtures("undrawn")
def test_without_the_dataset_the_report_says_what_it_leaves_out(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, seeds=(0,))
    for run in results.runs:
        config = run.folder / "config.toml"
        config.write_text(config.read_text().replace(str(dataset.path), str(tmp_path / "gone")))
    page = write_report(results, tmp_path / "out").read_text(encoding="utf-8")
    assert "Where one of two rows wins is not drawn: the dataset can&#39;t be had (" in page
    assert "The policies by kind of user are not drawn: the dataset can&#39;t be had (" in page
    assert "gated against plain" not in page


@pytest.mark.usefixtures("undrawn")
def test_another_dataset_in_its_place_is_not_taken_for_it(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, seeds=(0,))
    config = results.runs[0].folder / "config.toml"
    config.write_text(config.read_text().replace(dataset.fingerprint, "0" * 64))
    page = write_report(results, tmp_path / "out", dataset).read_text(encoding="utf-8")
    assert "is not the one that the runs were made on" in page


@pytest.mark.usefixtures("undrawn")
def test_a_profile_label_is_reported_too(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, task="label:kind", seeds=(0,))
    for run in results.runs:  # runs record the fingerprint of the target that the label makes
        (run.folder / "config.toml").unlink()
    page = write_report(results, tmp_path / "out").read_text(encoding="utf-8")
    assert "Accuracy" in page
    assert "F1 macro" in page


def test_sentences_say_who_leads_and_whether_that_is_more_than_chance(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, seeds=(0, 1, 2), files=False)
    values = {
        (PLAIN, 0): 0.10,
        (PLAIN, 1): 0.20,
        (PLAIN, 2): 0.30,
        (GATED, 0): 0.11,
        (GATED, 1): 0.22,
        (GATED, 2): 0.33,
    }
    for run in results.runs:
        run.metrics["test"]["full"]["mrr@5"] = values[run.setting, run.seed]
    first = sentences(results)[0]
    assert first.startswith("gated leads with MRR@5, full ranking 0.2200 ± 0.1100 over 3 seeds.")
    test = test_pairs(results)[0].tests["seeds"]  # of differences 0.01, 0.02, 0.03
    assert test.p_holm >= 0.05
    verdict = f"not distinguishable (Holm's p = {test.p_holm:.2g}, d = {signed(-test.effect, 2)});"
    assert f"from plain, the next, is +0.0200: over 3 seeds {verdict}" in first


def test_two_seeds_with_equal_differences_are_not_called_one_seed(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, seeds=(0, 1), files=False)
    for run in results.runs:  # each row alike in both seeds: no spread, so no test over seeds
        run.metrics["test"]["full"]["mrr@5"] = 0.1 + 0.1 * results.settings.index(run.setting)
    assert not [line for line in sentences(results) if "one seed can't say" in line]


def test_a_strategy_that_gains_nothing_by_deciding_per_user_is_told_so(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, seeds=(0,), files=False)
    (run,) = results.of(GATED)
    run.metrics["test"]["full"]["mrr@5"] = 0.49
    run.metrics["gates"] = {"mean": [1.0, 0.0, 0.0]}  # every run with a control has it
    run.metrics["control"] = {"gates": [1, 0, 0], "test": {"full": {"mrr@5": 0.5, "hr@5": 1.0}}}
    run.instances["control_rank_full"] = np.full(len(run.instances["user"]), 2.0)
    said = [line for line in sentences(results) if line.startswith("gated deciding per user")]
    assert len(said) == 1
    assert "one choice of blocks for all its users, with as many fine-tuned blocks as the policy uses on" in said[0]
    assert said[0].endswith("Deciding per user gains −0.0100 MRR@5.")


def test_a_control_that_was_not_measured_is_named_with_its_reason(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, seeds=(0, 1, 2), files=False)
    for run, reason in zip(results.of(GATED), ("takes no gates", "takes no gates", "too many"), strict=True):
        run.metrics.update({"gates": {"mean": [0.5]}, "control": {"reason": reason}})
    (note,) = control_notes(results)
    assert "takes no gates; too many" in note
    assert f"{note}." in sentences(results)
    assert f"{note}." not in sentences(dataclasses.replace(results, notes=(note,)))  # the page has it there


def test_seeds_whose_control_was_not_measured_are_left_out_of_its_sentence(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, files=False)
    one, two = results.of(GATED)
    one.metrics["test"]["full"]["mrr@5"] = 0.49
    one.metrics.update({"gates": {"mean": [0.5]}, "control": {"test": {"full": {"mrr@5": 0.5, "hr@5": 1.0}}}})
    one.instances["control_rank_full"] = np.full(len(one.instances["user"]), 2.0)
    two.metrics.update({"gates": {"mean": [0.5]}, "control": {"reason": "takes no gates"}})
    (said,) = [line for line in sentences(results) if line.startswith("gated deciding per user")]
    assert "deciding per user: 0.4900; one choice" in said
    assert any("seed 1: takes no gates" in line for line in sentences(results))


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_before_its_tests_that_those_over_instances_are_optimistic(
    tmp_path: Path, dataset: Dataset
) -> None:
    page = write_report(made_up(tmp_path, dataset), tmp_path / "out").read_text(encoding="utf-8")
    tests = page[page.index('<section id="pairs">') :]
    assert CAVEAT in tests[: tests.index("<details>")]  # not folded away


def test_a_simple_ranking_that_nobody_beats_is_named_once(tmp_path: Path, dataset: Dataset) -> None:
    results = made_up(tmp_path, dataset, seeds=(0,), files=False)
    for run in results.runs:
        run.metrics["references"]["popularity"] = {"full": {"mrr@5": 0.9, "hr@5": 0.9}}
    lost = [line for line in sentences(results) if "popularity" in line]
    assert len(lost) == 2  # one per metric
    assert all(line.startswith("No strategy beats popularity in ") for line in lost)
    notes = tuple(f"{line[0].lower()}{line[1:-1]}" for line in lost)
    assert not [line for line in sentences(dataclasses.replace(results, notes=notes)) if "popularity" in line]
