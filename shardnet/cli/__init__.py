"""The command line. Each command lives in a file of its own here and imports what is heavy only when it runs."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Annotated

import typer

app = typer.Typer(
    name="shardnet",
    help="Run one large language model on several ordinary machines.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from shardnet import __version__

        typer.echo(f"shardnet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    from shardnet import log

    log.configure(level="warning", form="auto")  # the daemons set their own


for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    # A command module defines `register(app)`. Modules stay light: what is heavy is imported inside the commands.
    _register = getattr(importlib.import_module(f"{__name__}.{_module}"), "register", None)
    if _register is not None:
        _register(app)
