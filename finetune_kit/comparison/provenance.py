"""Notes on what the runs of a comparison stand on: the code that made them, and their pre-trained backbones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_kit.comparison.results import read_facts, row_name
from finetune_kit.config import read_toml

if TYPE_CHECKING:
    from finetune_kit.comparison.record import Planned

DECIDE_BASE = ("backbone.", "pretrain.", "data.max_length")
"""How options begin that make another pre-trained backbone."""


def code_notes(folders: Iterable[Path]) -> list[str]:
    """Return a note where runs were made by several states of the code, as their ``config.toml`` have it; else none."""
    found = Counter(_code(folder) for folder in folders)
    if len(found) < 2:
        return []
    is_one_version = len({version for version, _ in found if version}) == 1
    named: Counter[str] = Counter()
    for (version, commit), count in found.items():
        named[commit if commit and is_one_version else " at ".join(filter(None, (version, commit))) or "unknown"] += (
            count
        )
    states = ", ".join(f"{name} ({count} run{'s' if count > 1 else ''})" for name, count in named.most_common())
    return [f"runs were made by {len(named)} states of the code: {states}; delete a run's folder to make it again"]


def _code(folder: Path) -> tuple[str, str]:
    """Return which version of Finetune-kit made a run, and in which git checkout; empty where that is unknown."""
    path = folder / "config.toml"
    recorded = read_toml(path) if path.exists() else {}
    version, git = recorded.get("versions", {}).get("finetune-kit"), recorded.get("git", {})
    commit = git.get("commit", "")[:7] + (" with changes" if git.get("is_dirty") else "")
    return f"version {version}" if version else "", commit


def base_notes(folder: Path, runs: Sequence[Planned]) -> Iterator[str]:
    """Yield a note for each seed and backbone whose rows stand on different pre-trained ones, though none asks for it.

    Args:
        folder: The comparison's.
        runs: Its finished runs.
    """
    settings = [run.setting for run in runs]
    bases: dict[tuple[int, str], dict[str, list[str]]] = {}
    for run in runs:
        asked = [*run.setting.variant.split(", "), *run.tuned]
        if (base := _base(folder / run.folder)) and not any(path.startswith(DECIDE_BASE) for path in asked):
            rows = bases.setdefault((run.seed, run.setting.backbone), {}).setdefault(base, [])
            rows.append(row_name(run.setting, settings))
    for (seed, backbone), by_hash in bases.items():
        if len(by_hash) > 1:
            rows = "; ".join(f"{', '.join(dict.fromkeys(names))} on {base[:7]}" for base, names in by_hash.items())
            yield f"seed {seed}: rows stand on {len(by_hash)} different pre-trained {backbone} backbones: {rows}"


def _base(folder: Path) -> str:
    """Return the hash of the pre-trained backbone that a run began from; empty where there is none."""
    path = folder / "model.json"
    facts = read_facts(path) if path.exists() else {}
    return (facts.get("base") or {}).get("hash", "")
