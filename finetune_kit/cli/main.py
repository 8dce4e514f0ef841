"""`ftkit`: puts the subcommands together and turns errors into one line and an exit code.

Exit codes: 0 done, 2 the user's mistake, 1 ours, 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from finetune_kit.cli import data, environment, evaluate, listings, plugins, train

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
app.command("finetune")(train.finetune)
app.command("evaluate")(evaluate.evaluate)
app.add_typer(data.app, name="data")
app.add_typer(listings.strategies, name="strategies")
app.add_typer(listings.backbones, name="backbones")
app.add_typer(plugins.app, name="plugins")
app.command("env")(environment.env)


@app.callback()
def options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Fine-tune sequential recommenders for cold users: strategies decide, per user, what is re-learned."""
    if version:
        from finetune_kit import __version__

        print(__version__)
        raise typer.Exit
    _STATE["traceback"] = traceback


_STATE = {"traceback": False}


def main() -> None:
    """Run the command line and exit with its code."""
    from finetune_kit.errors import FinetuneKitError

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        app()
    except FinetuneKitError as error:
        if _STATE["traceback"]:
            raise
        print(f"ftkit: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("ftkit: interrupted; the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
