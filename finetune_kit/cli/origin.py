"""What ``--from`` of `ftkit finetune` names, and what is taken from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_kit.cli import arguments as arg
from finetune_kit.cli.result import dataset_of
from finetune_kit.cli.runner import refuse_other_data
from finetune_kit.errors import CheckpointError, OptionError
from finetune_kit.sections import DataOptions

if TYPE_CHECKING:
    from finetune_kit.training.assemble import Run
    from finetune_kit.training.grow import Growth
    from finetune_kit.training.run import Runner
    from finetune_kit.training.stages import Start

Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Origin:
    """A run or a pre-trained backbone that a fine-tuning starts from.

    Args:
        folder: Its folder.
        sections: Its configuration.
        facts: What its weights are bound to.
        has_other_data: Whether the fine-tuning is on another dataset, so that a run's own strategy goes on.
    """

    folder: Path
    sections: Sections
    facts: Mapping[str, Any]
    has_other_data: bool

    @classmethod
    def read(cls, folder: Path, *, has_other_data: bool) -> Origin:
        """Return what stands in a folder.

        Raises:
            CheckpointError: When it is neither a run nor a pre-trained backbone, or damaged.
        """
        from finetune_kit.checkpoint import read_facts
        from finetune_kit.config import read_run

        if not (folder / "config.toml").exists():
            raise CheckpointError(
                f"--from {str(folder)!r} is no run and no pre-trained backbone: it has no config.toml"
            )
        return cls(folder, arg.where_it_is(read_run(folder)), read_facts(folder), has_other_data)

    @property
    def base(self) -> Path | None:
        """The pre-trained backbone that the folder is, or that the run started from; None where it had none.

        Raises:
            CheckpointError: When it is not there any more, or another.
        """
        from finetune_kit.checkpoint import read_facts

        if not self._is_run:
            return self.folder
        if self.facts["base"] is None:
            return None
        base = self.folder / self.facts["base"]["path"]
        if not base.is_dir():
            raise CheckpointError(
                f"the base of {str(self.folder)!r} is no longer at {str(base)!r}; put it there, or name it with --from"
            )
        if (found := read_facts(base)["hash"]) != (was := self.facts["base"]["hash"]):
            raise CheckpointError(
                f"{str(self.folder)!r} was fine-tuned from the base with hash {was}; {str(base)!r} has {found}; put "
                "that base there, or name another with --from"
            )
        return base

    @property
    def _is_run(self) -> bool:
        from finetune_kit.checkpoint import PRETRAINED

        return self.facts["kind"] != PRETRAINED

    def goes_on(self, strategy: str | None) -> bool:
        """Return whether the run's own weights go on under a strategy; None stands for the run's."""
        return self.has_other_data and self._is_run and strategy in (None, self.sections["run"].get("strategy"))

    def completed(self, sections: Sections) -> Sections:
        """Return the sections asked for, completed by the origin's.

        Raises:
            OptionError: When no strategy is named and none goes on, there is nothing pre-trained to start from, or an
                option that was asked for comes too late.
        """
        own, run = self.sections, sections.get("run", {})
        goes_on = self.goes_on(run.get("strategy"))
        self._refuse(sections, goes_on)
        if self.has_other_data:  # options by which the old dataset was prepared say nothing of the new one
            used = {name: value for name, value in own["data"].items() if name in DataOptions.model_fields}
            own = {**own, "data": used}
        taken = ("backbone", "pretrain", "data", *(("finetune", "evaluation", "strategy") if goes_on else ()))
        names = ("data", "backbone", "seed", "preset", *(("strategy", "task") if goes_on else ()))
        own_run = {name: own["run"][name] for name in names if name in own["run"]}
        merged = {name: arg.merged(own.get(name, {}), sections.get(name, {})) for name in taken}
        return {**sections, **merged, "run": {**own_run, **run}}

    def _refuse(self, sections: Sections, goes_on: bool) -> None:
        run, was = sections.get("run", {}), self.sections.get("run", {}).get("task", "items")
        if "strategy" not in run and not goes_on:
            raise OptionError("which strategy? Add --strategy NAME; `ftkit strategies` lists them")
        if self.base is None and not goes_on:
            raise OptionError(
                f"--from {str(self.folder)!r} was not pre-trained; name a pre-trained backbone or a run that was"
            )
        if goes_on and run.get("task", was) != was:
            raise OptionError(
                f"--task {run['task']} is not that of {str(self.folder)!r}, {was}, with which it goes on; "
                "name another --strategy, which starts from its base"
            )
        for option, value in sections.get("pretrain", {}).items():
            if str(value) != str(self.sections.get("pretrain", {}).get(option)):
                raise OptionError(
                    f"pretrain.{option} has no effect: --from is pre-trained already; see `ftkit pretrain`"
                )

    def growth(self, runner: Runner, from_data: str | None) -> Growth | None:
        """Return the way from the origin's dataset to the runner's; None where they are the same.

        Raises:
            OptionError: When the origin's dataset was changed in its place.
            CheckpointError: When the origin's dataset is not there any more.
            DataError: When the datasets have no items in common.
        """
        from finetune_kit.training.grow import Growth

        if not self.has_other_data:
            refuse_other_data(self.folder, self.sections, runner)
            return None
        advice = "its raw ids tell which row is which item's, so say with --from-data where it is"
        old = dataset_of(self.folder, from_data, advice, "--from-data")
        growth = Growth(runner.config, old, runner.dataset, runner.progress)
        growth.refuse_strangers(with_target=self.goes_on(runner.config.run.strategy))
        return growth

    def keep_parts(self, runner: Runner, growth: Growth | None) -> None:
        """Let target instances that are in the weights already keep the part that they had, and tell how many do."""
        from finetune_kit.training.grow import earlier_parts, task_of

        folder = self.folder if self.goes_on(runner.config.run.strategy) else self.base
        if folder is None or task_of(folder) != runner.config.run.task:
            return
        old = runner.dataset if growth is None else growth.old
        runner.earlier = earlier_parts(folder, old, runner.dataset)
        if runner.earlier is None:
            return
        target = runner.dataset.target
        was = runner.earlier.part_of(target.user, target.item, runner.config.data.split)
        runner.progress.say(
            f"{(was >= 0).sum():,} of {len(was):,} target instances keep the part that they had "
            f"({(was == 0).sum():,} were trained on); {(was < 0).sum():,} are split anew"
        )

    def run_that_goes_on(self, runner: Runner, growth: Growth | None) -> Run | None:
        """Return the run whose weights go on, loaded; None where a strategy begins anew.

        Raises:
            CheckpointError: When it is damaged, or does not belong to its base or dataset.
        """
        from finetune_kit.training.assemble import load_run

        if growth is None or not self.goes_on(runner.config.run.strategy):
            return None
        return load_run(self.folder, growth.old)

    def refuse_as_output(self, output: Path | None, runner: Runner) -> None:
        """Raise if what is written would take the place of what it is made from."""
        used = {path.resolve() for path in (self.folder, self.base, runner.dataset.path) if path}
        if output is not None and output.resolve() in used:
            raise OptionError(f"--output {str(output)!r} is what --from starts from; name another folder")

    def start(
        self, base: Path | None, growth: Growth | None, run: Run | None, root: Path
    ) -> tuple[Path | None, Start | None]:
        """Return the pre-trained backbone and the weights that training starts from, grown where the dataset has grown.

        Args:
            base: The pre-trained backbone, where the strategy needs one.
            growth: From the origin's dataset to the runner's, where that is another.
            run: The run whose weights go on, where they do.
            root: Where a grown backbone gets its folder.
        """
        if growth is None:
            return base, None
        base = None if base is None else growth.grow_base(base, root)
        return base, None if run is None else growth.grow_run(run, base)
