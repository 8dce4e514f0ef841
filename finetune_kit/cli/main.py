"""`ftkit`: puts the subcommands together and turns errors into one line and an exit code.

Exit codes: 0 done, 2 the user's mistake, 1 ours, 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from traceback import walk_tb
from typing import Annotated, Any

import typer

from finetune_kit.cli import (
    compare,
    data,
    environment,
    evaluate,
    finetune,
    listings,
    merge,
    plugins,
    recommend,
    sections,
    train,
)
from finetune_kit.memory import ANYWHERE, is_out_of_memory, out_of_memory

app = typer.Typer(
    name="ftkit",
    help="Fine-tune sequential recommenders for cold users: strategies decide, per user, what is re-learned.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("run")(train.run)
app.command("pretrain")(train.pretrain)
app.command("finetune")(finetune.finetune)
app.command("evaluate")(evaluate.evaluate)
app.command("recommend")(recommend.recommend)
app.command("merge")(merge.merge)
app.command("compare")(compare.compare)
app.add_typer(data.app, name="data")
app.add_typer(listings.strategies, name="strategies")
app.add_typer(listings.backbones, name="backbones")
app.add_typer(listings.policies, name="policies")
app.command("options")(sections.options)
app.add_typer(plugins.app, name="plugins")
app.command("env")(environment.env)


def _print_version(wanted: bool) -> None:
    if wanted:
        from finetune_kit import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Fine-tune sequential recommenders for cold users: strategies decide, per user, what is re-learned."""
    _STATE["traceback"] = traceback


_STATE = {"traceback": False}


def main() -> None:
    """Run the command line and exit with its code."""
    from finetune_kit.errors import FinetuneKitError, one_line

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        code = app(standalone_mode=False) or 0
    except FinetuneKitError as error:
        if _STATE["traceback"]:
            raise
        print(f"ftkit: {error}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OSError as error:  # a full disk, a folder that can't be written
        if _STATE["traceback"]:
            raise
        reason = error.strerror or one_line(error)
        print(f"ftkit: {error.filename or 'reading or writing'}: {reason}", file=sys.stderr)
        code = 2
    except Exception as error:
        if hasattr(error, "format_message"):
            code = _explain_usage(error)
        elif is_out_of_memory(error) and not _STATE["traceback"]:
            print(f"ftkit: {out_of_memory(error, 'this', ANYWHERE)}", file=sys.stderr)
            code = 2
        elif (plugin := _plugin_at_fault(error)) and not _STATE["traceback"]:
            reason = one_line(error, with_type=True)
            print(f"ftkit: the plugin {plugin!r} failed: {reason}; ftkit --traceback shows where", file=sys.stderr)
            code = 2
        else:
            raise
    if code == INTERRUPTED:
        advice = _GOES_ON.get("".join(sys.argv[1:2]), "")
        print(f"ftkit: interrupted{advice}", file=sys.stderr)
    sys.exit(code)


def _plugin_at_fault(error: Exception) -> str | None:
    """Return the name of the third party's plugin in whose code an error arose, or None."""
    from finetune_kit.plugins import installed

    plugins = {plugin.module.partition(".")[0]: plugin for plugin in installed().loaded}
    modules = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    for module in reversed(modules):
        if module in plugins and plugins[module].distribution != "finetune-kit":
            return plugins[module].name
    return None


INTERRUPTED = 130
_RESUME = "; the same command with --resume goes on"
_GOES_ON = {"run": _RESUME, "pretrain": _RESUME, "finetune": _RESUME, "compare": "; the same command goes on"}


def _explain_usage(error: Any) -> int:
    """Print what typer found wrong with a command line, in one line; a command group alone gets its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    message = error.format_message().rstrip(".")
    command = getattr(getattr(error, "ctx", None), "command_path", "ftkit")
    print(
        f"ftkit: {message[0].lower()}{message[1:]}{'' if message.endswith('?') else ';'} see `{command} --help`",
        file=sys.stderr,
    )
    return 2
