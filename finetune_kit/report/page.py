"""``report.html``: words, tables and pictures in one file that needs no network and no script."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path

import jinja2

from finetune_kit.comparison.control import control_table
from finetune_kit.comparison.results import Results
from finetune_kit.comparison.statistics import CAVEAT
from finetune_kit.comparison.table import TableData
from finetune_kit.comparison.tables import cost_table, main_tables, pair_tables
from finetune_kit.config import read_toml
from finetune_kit.data.dataset import Dataset
from finetune_kit.data.labelled import for_task
from finetune_kit.errors import FinetuneKitError
from finetune_kit.files import write_text
from finetune_kit.report.curves import curve_pictures
from finetune_kit.report.diversity import collapses, diversity_pictures, policy_table
from finetune_kit.report.heatmap import kinds_of, policy_pictures
from finetune_kit.report.metrics import metrics_pictures
from finetune_kit.report.picture import Picture, looks, style
from finetune_kit.report.wins import find_wins, pair_to_compare
from finetune_kit.report.wins_picture import wins_picture, wins_words
from finetune_kit.report.words import sentences

TEMPLATE = "report.html.jinja"
_OVER_INSTANCES = (
    f"Tests over instances, here and of policies, can mislead. {CAVEAT} Whether a difference lasts under other seeds, "
    "the tests over seeds say, where there are several."
)


@dataclass(frozen=True)
class Shown:
    """A picture as the page has it.

    Args:
        picture: Its words.
        data: A ``data:`` address with the whole SVG: names inside it can't do anything there.
        width: Its width in inches.
    """

    picture: Picture
    data: str
    width: float


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        id: Its anchor.
        title: Its heading.
        texts: Paragraphs, e.g. what could not be drawn and why.
        content: Its tables and pictures.
        is_detail: Whether its tables are folded away.
    """

    id: str
    title: str
    texts: Sequence[str] = ()
    content: Sequence[TableData | Shown] = ()
    is_detail: bool = False


def write_report(results: Results, folder: Path, dataset: Dataset | None = None) -> Path:
    """Write ``pictures/NAME.png``, ``pictures/NAME.svg`` and ``report.html``; the same results give the same bytes.

    Args:
        results: The finished runs.
        folder: Where to write.
        dataset: What the runs were made on; None opens the folder that they name. Pictures that need it are left out,
            with a word on why, where it can't be had or has changed.

    Returns:
        The path of ``report.html``.
    """
    with style():
        found = _sections(results, folder / "pictures", dataset)
        sections = [section for section in found if section.texts or section.content]
    source = files("finetune_kit.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["kept"] = _kept
    said = [*sentences(results), *collapses(results)]
    page = environment.from_string(source).render(results=results, sentences=said, sections=sections)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _kept(text: str) -> str:
    """Return a text that no line breaks before a percent sign."""
    return text.replace(" %", "\u00a0%")


def _sections(results: Results, folder: Path, dataset: Dataset | None) -> Iterator[Section]:
    """Yield the parts of the page, in order; their pictures are written on the way."""
    look = looks(results)
    dataset, why = _find_dataset(results, dataset)
    kinds = kinds_of(dataset.labels) if dataset else {}
    yield Section(
        "metrics", "Metrics", content=[*main_tables(results), *_show(metrics_pictures(results, look), folder)]
    )
    yield Section("curves", "Learning curves", content=_show(curve_pictures(results, look), folder))
    if any(run.gates is not None for run in results.runs):
        texts = [] if dataset else [f"The policies by kind of user are not drawn: {why}."]
        pictures = chain(policy_pictures(results, kinds), diversity_pictures(results, look))
        tables = [table for table in (control_table(results), policy_table(results)) if table]
        yield Section("policies", "Policies", texts, [*_show(pictures, folder), *tables])
    if pair := pair_to_compare(results):
        try:
            wins = find_wins(results, pair, dataset, kinds) if dataset else None
        except ValueError as error:
            wins, why = None, str(error)
        texts = [wins_words(results, wins) if wins else f"Where one of two rows wins is not drawn: {why}."]
        yield Section(
            "wins", "Who wins where", texts, _show([wins_picture(results, wins, look)] if wins else [], folder)
        )
    yield Section("costs", "Costs", content=[cost_table(results)])
    if tables := pair_tables(results):
        yield Section("pairs", "Tests of all pairs", [_OVER_INSTANCES], tables, is_detail=True)


def _show(pictures: Iterable[Picture], folder: Path) -> list[Shown]:
    """Write pictures and return them as the page has them."""
    shown = []
    for picture in pictures:
        text = base64.b64encode(picture.write(folder)).decode()
        shown.append(Shown(picture, f"data:image/svg+xml;base64,{text}", picture.figure.get_figwidth()))
    return shown


def _find_dataset(results: Results, dataset: Dataset | None) -> tuple[Dataset | None, str]:
    """Return the dataset with its own target items, or None and why it can't be had."""
    try:
        recorded = read_toml(results.runs[0].folder / "config.toml")["files"]
        found = dataset or Dataset.open(recorded["dataset"])
        plain = Dataset(found.path, found.manifest)
        if for_task(plain, results.task).fingerprint == recorded["dataset_fingerprint"]:
            return plain, ""
    except (FinetuneKitError, KeyError, OSError) as error:
        return None, f"the dataset can't be had ({error})"
    return None, f"the dataset in {plain.path} is not the one that the runs were made on"
