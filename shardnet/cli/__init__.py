"""The command line. Each command lives in a file of its own here and imports what is heavy only when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from shardnet.cli import (
    bench,
    chat,
    completing,
    config,
    coordinator,
    demo,
    devices,
    doctor,
    generate,
    health,
    inspect,
    join,
    key,
    logs,
    node,
    plan,
    seed,
    split,
    status,
    swarm,
    verify,
)
from shardnet.cli.wording import InOurWords

app = typer.Typer(
    name="shardnet",
    cls=InOurWords,
    help="Run one large language model on several ordinary machines.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
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
    install_completion: Annotated[
        str | None,
        typer.Option(
            metavar="[SHELL]",
            callback=completing.install_script,
            is_eager=True,
            help=f"Have a shell complete commands, options and values: {', '.join(completing.SHELLS[:3])}. Nothing said: this shell.",
            autocompletion=completing.words(*completing.SHELLS),
        ),
    ] = None,
    show_completion: Annotated[
        str | None,
        typer.Option(
            metavar="[SHELL]",
            callback=completing.show_script,
            is_eager=True,
            help="Print the script for that instead, to put it elsewhere.",
            autocompletion=completing.words(*completing.SHELLS),
        ),
    ] = None,
) -> None:
    from shardnet import log

    log.configure(level="warning", form="auto")  # the daemons set their own


# The modules stay light: what is heavy is imported inside the commands. `--help` lists them in this order.
for _command in (
    inspect.inspect,
    split.split,
    verify.verify,
    devices.devices,
    node.node,
    coordinator.coordinator,
    seed.fetch,
    seed.seed,
    seed.torrent,
    generate.generate,
    chat.chat,
    status.status,
    health.health,
    logs.logs,
    doctor.doctor,
    plan.plan,
    join.join,
    demo.demo,
    bench.bench,
):
    app.command()(_command)
app.add_typer(swarm.swarm, name="swarm")
app.add_typer(key.key, name="key")
app.add_typer(config.config, name="config")
