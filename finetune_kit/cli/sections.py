"""`ftkit options`: the sections of a run's configuration, and every option of each."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune_kit.cli.listings import Json, print_options
from finetune_kit.cli.output import print_json, stdout, table
from finetune_kit.errors import OptionError, did_you_mean

SECTIONS = {
    "run": "What is combined: strategy, backbone, dataset, task, seed, device",
    "data": "How a dataset is used: length, split, share of the training instances",
    "backbone": "Of the chosen backbone: ftkit backbones show NAME",
    "pretrain": "Stage 1, on the source domain",
    "finetune": "Stage 2, on the target domain",
    "evaluation": "How a run is measured",
    "strategy": "Of the chosen strategy: ftkit strategies show NAME",
}
"""Section to one line on it, in the order of a run's ``config.toml``."""
ELSEWHERE = {"backbone": "backbones", "strategy": "strategies"}
"""Sections whose options depend on what is chosen, and the listing that shows them."""
NOTES = {"data": "A dataset given by name takes its own options here too:\nftkit data prepare NAME --help."}


def options(
    section: Annotated[
        str | None, typer.Argument(help="One of the sections; none lists them.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """List the sections of a configuration, or show what --set SECTION.OPTION=VALUE takes in one."""
    if section is None:
        _list_sections(json)
        return
    if section not in SECTIONS:
        raise OptionError(f"no section {section!r}.{did_you_mean(section, SECTIONS)} Sections: {', '.join(SECTIONS)}")
    if section in ELSEWHERE:
        raise OptionError(f"the options of {section} depend on which it is; see `ftkit {ELSEWHERE[section]} show NAME`")
    _show_section(section, json)


def _list_sections(json: bool) -> None:
    if json:
        print_json([{"name": name, "summary": summary} for name, summary in SECTIONS.items()])
        return
    shown = table("", "section", "what it decides")
    for row in SECTIONS.items():
        shown.add_row(*row)
    stdout().print(shown)


def _show_section(section: str, json: bool) -> None:
    from finetune_kit import sections
    from finetune_kit.options import describe

    models = {
        "run": sections.RunOptions,
        "data": sections.DataOptions,
        "pretrain": sections.PretrainOptions,
        "finetune": sections.FinetuneOptions,
        "evaluation": sections.EvaluationOptions,
    }
    rows = describe(models[section])
    if json:
        print_json({"name": section, "summary": SECTIONS[section], "options": [row._asdict() for row in rows]})
        return
    print_options(f"{section}: {SECTIONS[section]}", section, rows)
    if section in NOTES:
        print(f"\n{NOTES[section]}")
