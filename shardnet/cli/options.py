"""Options that several commands have, each said once."""

from __future__ import annotations

from typing import Annotated

import typer

from shardnet.cli import completing

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Api = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The coordinator's API. [default: $SHARDNET_API, else this machine's coordinator]"
    ),
]
MetricsListen = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Gives /metrics, and nothing else, to whoever reaches it; nowhere if nothing is said."
    ),
]
LogFormat = Annotated[
    str | None,
    typer.Option(
        metavar="auto|pretty|json",
        help="How log lines look. [default: auto]",
        autocompletion=completing.words("auto", "pretty", "json"),
    ),
]
LogLevel = Annotated[
    str | None,
    typer.Option(
        metavar="debug|info|warning|error",
        help="Which log lines are written. [default: info]",
        autocompletion=completing.words("debug", "info", "warning", "error"),
    ),
]
