"""``--devices N``: the same command in N processes, by torch's own launcher; and which of them tells an error.

torchrun and srun start these processes themselves; then nothing here starts any.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from finetune_kit.processes import started_job

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

OURS = "ftkit-"
"""What the id of a job begins with that `train_in_several` started."""
TOLD = "told"
"""File beside the workers' own that the first to tell an error leaves, with its exit code."""
LOST = 3
"""Exit code of a worker that lost the others; the one that they lost is at fault."""


def train_in_several(sections: Mapping[str, Mapping[str, Any]]) -> bool:
    """Run this command in as many processes as ``run.devices`` says; return False where this one is to do it.

    Raises:
        OptionError: When there are fewer devices.
        Interrupted: When a signal ended them, and what was done is saved.
        typer.Exit: When they failed; why has been told.
    """
    from finetune_kit.config import resolve_config

    if started_job() is not None:
        if is_ours():
            _end_with_the_parent()
        return False
    run = resolve_config(sections).run
    if run.devices == 1:
        return False
    from finetune_kit.training.device import checked_device

    checked_device(run.device, run.precision, run.devices)
    if code := _launch(run.devices, sys.argv[1:]):
        raise typer.Exit(code)
    return True


def _launch(number: int, words: list[str]) -> int:
    """Run ``ftkit`` with some arguments in so many processes; return the exit code."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from finetune_kit.interruption import Interrupted

    _set_defaults(number)
    quiet = logging.root.manager.disable
    logging.disable(logging.ERROR)  # what failed is told here, in one line
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=number,
            run_id=f"{OURS}{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle="SIGTERM,SIGINT,SIGHUP",
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "finetune_kit", *words)
        except SignalException as error:
            raise Interrupted(error.sigval) from None
        except ChildFailedError as error:
            return _explain(error.failures, number, Path(logs))
        finally:
            logging.disable(quiet)
    return 0


def _set_defaults(number: int) -> None:
    """Set, unless it is set, what the workers inherit: their share of the cores, and that none but they can connect."""
    from finetune_kit.workers.local import share_of_cores

    os.environ.setdefault("OMP_NUM_THREADS", str(share_of_cores(number)))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a warning that blocks could do without branches
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        os.environ.setdefault("PYTHONSAFEPATH", "1")  # `python -m` would import what lies in the current folder


def _explain(failures: Mapping[int, ProcessFailure], number: int, logs: Path) -> int:
    """Tell what ended the job, unless a worker has told it; return the exit code."""
    from finetune_kit.cli.going_on import command_to_go_on

    if told := next(logs.rglob(TOLD), None):
        return int(told.read_text() or 1)
    rank, failure = min(failures.items(), key=lambda item: (item[1].exitcode == LOST, item[1].timestamp))
    code, going_on = failure.exitcode, command_to_go_on()
    how = f"died: exit code {code}"
    if code < 0:
        how = f"died: killed by signal {-code}, {signal.Signals(-code).name}"
    elif code > 128:
        how = f"was ended by {signal.Signals(code - 128).name}, and what was done is saved"
    print(
        f"ftkit: worker {rank} of {number} (numbered from 0) {how}; the others were ended"
        f"{going_on and f'; go on with: {going_on}'}",
        file=sys.stderr,
    )
    return 1


def is_ours() -> bool:
    """Return whether `train_in_several` started this process, so that another tells how the job ended."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(OURS)


def is_first_to_tell(code: int) -> bool:
    """Return whether no other process of this machine has told an error yet; none after this one will.

    Args:
        code: The exit code that goes with it.
    """
    own = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not own or started_job() is None:
        return True
    try:
        with (Path(own).parent.parent / TOLD).open("x") as file:
            file.write(str(code))
    except FileExistsError:
        return False
    except OSError:  # a full disk: better told twice than never
        return True
    return True


def _end_with_the_parent() -> None:
    """Ask the system for SIGTERM when the launcher dies, even if it is killed: no worker is left behind."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
