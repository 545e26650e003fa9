"""`shardnet doctor`: what is wrong with this machine and its swarm, and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shardnet.cli.options import Api, AsJson


def doctor(
    as_json: AsJson = False,
    config: Annotated[
        Path | None,
        typer.Option(help="The settings file of the daemon that runs here, a node's or the coordinator's."),
    ] = None,
    models_cache: Annotated[
        Path | None, typer.Option(help="Folder of shards; models_cache if nothing is said.")
    ] = None,
    api: Api = None,
) -> None:
    """Check this machine and its swarm.

    Check this machine, and the swarm if there is a coordinator: each finding says what to do. Ends with 7 if something must be mended.
    """
    from shardnet.doctor.examination import examine
    from shardnet.doctor.findings import as_json as worded
    from shardnet.doctor.findings import summary, worst
    from shardnet.doctor.subject import subject_of
    from shardnet.errors import EXIT_TO_MEND

    found = examine(subject_of(config, models_cache, api))
    if as_json:
        typer.echo(json.dumps(worded(found)))
    else:
        for one in found:
            typer.echo(one.line())
        typer.echo(summary(found))
    if worst(found) == "fault":
        raise typer.Exit(EXIT_TO_MEND)
