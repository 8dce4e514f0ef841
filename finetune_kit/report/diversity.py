"""How many different choices policies make, beside a policy that throws coins: a table and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from matplotlib.axes import Axes

from finetune_kit.comparison.results import Results, Setting
from finetune_kit.comparison.table import TableData
from finetune_kit.report.picture import GREY, Look, Part, Picture, new_figure, parts, short
from finetune_kit.report.policy import PolicySummary, collapse_words, percent, policy_summary, random_summary


class PolicyOfRun(NamedTuple):
    """What a run's policy does, beside a random one of as many users and blocks."""

    setting: Setting
    seed: int
    summary: PolicySummary
    random: PolicySummary


def policies(results: Results) -> list[PolicyOfRun]:
    """Return what the policy of each run with gates does, in the order of the runs."""
    coins: dict[tuple[int, int], PolicySummary] = {}
    found = []
    for run in results.runs:
        if (gates := run.gates) is not None:
            if gates.shape not in coins:
                coins[gates.shape] = random_summary(*gates.shape)
            found.append(PolicyOfRun(run.setting, run.seed, policy_summary(gates), coins[gates.shape]))
    return found


def collapses(results: Results) -> list[str]:
    """Return a sentence per run whose policy treats its users alike."""
    words = [collapse_words(f"{results.name(one.setting)}, seed {one.seed}", one.summary) for one in policies(results)]
    return [sentence for sentence in words if sentence]


def diversity_pictures(results: Results, looks: Mapping[Setting, Look]) -> Iterator[Picture]:
    """Yield a picture per fraction of the data; nothing without gates."""
    for part in parts(results):
        if found := policies(part.results):
            yield _picture(part, found, looks)


_PANELS = {
    "entropy": "Entropy of the usage, bits",
    "effective": "Effective number of choices",
    "distance": "Distance from the uniform policy",
}
"""What `PolicySummary` calls it, and what it is called above a panel."""
_CAPTION = (
    "Each dot is a seed; grey bars are a simulated random policy, a fair coin per user and block, for as many users. "
    "Entropy: of the share of users on the fine-tuned branch, mean over blocks; 1 where halves of the users differ, 0 "
    "where all agree. Effective number of choices: exp of the entropy of the distribution over the 2^blocks ways to "
    "choose. Distance: total variation between that distribution and the uniform one; 0 is chance, 1 a single choice "
    "of very many. A soft gate counts as fine-tuned above 0.5."
)


def _picture(part: Part, found: list[PolicyOfRun], looks: Mapping[Setting, Look]) -> Picture:
    settings = list(dict.fromkeys(one.setting for one in found))
    figure = new_figure(0.9 + 0.3 * len(settings))
    grid = figure.subplots(1, len(_PANELS), sharey=True)
    for axes, (name, title) in zip(grid, _PANELS.items(), strict=True):
        _draw(axes, found, settings, looks, name)
        axes.set_title(title)
    grid[0].set_yticks(range(len(settings)), [short(part.results.name(setting)) for setting in settings])
    grid[0].set_ylim(len(settings) - 0.5, -0.5)
    return Picture(
        name=f"policy-diversity{part.suffix}",
        title=f"How far the policies are from chance{part.words}",
        caption=_CAPTION,
        alt=_alt(part.results, found),
        figure=figure,
    )


def _draw(
    axes: Axes, found: list[PolicyOfRun], settings: list[Setting], looks: Mapping[Setting, Look], name: str
) -> None:
    """Draw one number of all policies: a line per setting."""
    for one in found:
        place, look = settings.index(one.setting), looks[one.setting]
        coin = getattr(one.random, name)
        axes.plot([coin, coin], [place - 0.32, place + 0.32], color=GREY, linewidth=2.5, solid_capstyle="butt")
        axes.plot(
            getattr(one.summary, name), place, look.marker, color=look.colour, alpha=0.8, markersize=6.5, clip_on=False
        )
    if name == "effective":
        top = max(2 ** len(one.summary.usage) for one in found)
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.9, top * 1.1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_xlim(-0.03, 1.03)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def _alt(results: Results, found: list[PolicyOfRun]) -> str:
    said = [
        f"{results.name(one.setting)}, seed {one.seed}: {one.summary.entropy:.2f} bits, {one.summary.effective:.1f} "
        f"effective choices, distance {one.summary.distance:.2f}"
        for one in found
    ]
    coin = found[0].random
    chance = f"random: {coin.entropy:.2f} bits, {coin.effective:.1f} effective choices, distance {coin.distance:.2f}"
    return f"Dot plots. {'; '.join([*said, chance])}."


def policy_table(results: Results) -> TableData:
    """Return what each run's policy does, and below what random policies of as many users and blocks do."""
    found = policies(results)
    coins = {(one.random.users, len(one.random.usage)): one.random for one in found}
    rows = [(f"{results.name(one.setting)}, seed {one.seed}", *_cells(one.summary)) for one in found]
    rows += [(f"random, {users:,} users × {blocks} blocks", *_cells(coin)) for (users, blocks), coin in coins.items()]
    columns = (
        *("policy", "mean gate", "spread", "entropy, bits", "information, bits"),
        *("choices", "effective", "commonest", "share", "distance"),
    )
    return TableData(_TABLE_CAPTION, columns, tuple(rows), rules=frozenset({len(found)}), title="Policies in numbers")


_TABLE_CAPTION = (
    "Per run: mean gate; largest standard deviation of a block's gates over users; entropy of the usage and mutual "
    "information between user and branch, both per block (equal for hard gates; information is 0 where all users have "
    "the same gates); number of different choices of blocks, their effective number, the commonest one and the share "
    "of users who make it; distance from the uniform policy (total variation). Below the rule: a simulated fair coin "
    "per user and block."
)


def _cells(summary: PolicySummary) -> tuple[str, ...]:
    return (
        f"{sum(summary.usage) / len(summary.usage):.3f}",
        f"{max(summary.spread):.3f}",
        f"{summary.entropy:.3f}",
        f"{summary.information:.3f}",
        f"{summary.choices:,}",
        f"{summary.effective:,.2f}",
        "".join(map(str, summary.commonest)),
        percent(summary.share),
        f"{summary.distance:.3f}",
    )
