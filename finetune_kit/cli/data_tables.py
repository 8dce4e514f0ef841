"""The facts of a dataset as tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from finetune_kit.cli.output import literal_console
from finetune_kit.foreign import visible

if TYPE_CHECKING:
    from rich.console import Console


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print what `finetune_kit.data.inspect.inspect` returned on stdout."""
    console = literal_console()
    console.print(f"{facts['name']}: {facts['users']:,} users, fingerprint {facts['fingerprint'][:12]}")
    source, target, raw = facts["source"], facts["target"], facts["raw"]
    _print(
        console,
        "kept, and in the raw events",
        ("domain", "items", "events", "raw users", "raw items", "raw events"),
        [
            (
                domain,
                part["items"],
                part["events"],
                *(raw[f"{domain}_{what}"] for what in ("users", "items", "events")),
            )
            for domain, part in (("source", source), ("target", target))
        ],
    )
    console.print(f"users in both domains before any were left out: {raw['common_users']:,}")
    _print(console, "source events per user", source["per_user"], [source["per_user"].values()])
    users = target["users_by_events"]
    _print(console, "users by number of target events", ("events", *users), [("users", *users.values())])
    for name, classes in facts["labels"].items():
        shares = [(label, count, f"{count / facts['users']:.1%}") for label, count in classes.items()]
        _print(console, f"label {name}", ("class", "users", "share"), shares)
    _print_left_out(console, facts["left_out"])
    if facts["beyond_max_target"]:
        console.print(f"target events left out beyond max_target: {facts['beyond_max_target']:,}")
    _print_times(console, facts["times"])
    for warning in facts["warnings"]:
        console.print(f"warning: {warning}")


def _print_left_out(console: Console, left_out: list[dict[str, Any]]) -> None:
    if left_out:
        rows = [(out["reason"], out["users"], out["source_events"], out["target_events"]) for out in left_out]
        _print(console, "users left out", ("who have", "users", "source events", "target events"), rows)


def _print_times(console: Console, times: Mapping[str, float | None] | None) -> None:
    if times is None:
        console.print("times: none, only an order")
        return
    console.print(f"source events with the time of the user's event before: {times['equal']:.1%}")
    if times["after_target"] is not None:
        console.print(f"source events later than the user's first target event: {times['after_target']:.1%}")


def _print(console: Console, title: str, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    table = Table(title=Text(visible(title)), title_justify="left", title_style="bold")
    for place, name in enumerate(header):
        table.add_column(Text(name), justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*(Text(_text(value)) for value in row))
    console.print(table)


def _text(value: Any) -> str:
    return visible(value) if isinstance(value, str) else f"{value:,}"
