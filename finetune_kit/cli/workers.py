"""`--workers` and `--ray`: who carries out what a command has to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from finetune_kit.errors import OptionError

if TYPE_CHECKING:
    from finetune_kit.workers.outcome import Workers

NumWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Processes that work side by side.  \\[default: 1; with --ray, the cluster's cores]",
        show_default=False,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Let the workers be on this Ray cluster: HOST:PORT, auto, or local, which starts one here.",
    ),
]


def make_workers(num_workers: int | None, ray: str | None, device: str) -> Workers | None:
    """Return who carries out tasks; None where this process does, one after the other.

    Args:
        num_workers: What ``--workers`` says.
        ray: What ``--ray`` says.
        device: The type of the device that the tasks compute on.

    Raises:
        OptionError: For a number that is none, or where Ray is not installed.
    """
    if num_workers is not None and num_workers < 1:
        raise OptionError(f"--workers {num_workers}: give 1 or more")
    if ray is None and num_workers in (None, 1):
        return None
    import torch

    if ray is None:
        from finetune_kit.workers.local import LocalWorkers

        assert num_workers is not None
        return LocalWorkers(num_workers, torch.get_num_threads())
    from finetune_kit.workers.cluster import RayWorkers, refuse_without_ray

    refuse_without_ray()
    return RayWorkers(ray, num_workers, torch.get_num_threads(), num_gpus=float(device == "cuda"))
