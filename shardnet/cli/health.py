"""`shardnet health`: whether the daemons of this home are well, by the exit code."""

from __future__ import annotations

from typing import Annotated

import typer

from shardnet.cli.options import AsJson


def health(
    name: Annotated[
        str | None, typer.Option(help="Only the daemon of this name; every one of this home if nothing is said.")
    ] = None,
    ready: Annotated[
        bool,
        typer.Option(
            "--ready", help="It has to be of use, too: a node has joined, a coordinator has a model that answers."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether the daemons of this home are well.

    For containers and scripts: exit code 0, or 5 and what is wrong.
    """
    import json

    from shardnet.condition.record import running_daemons
    from shardnet.errors import UnreachableError
    from shardnet.swarm.home import Home

    found = running_daemons(Home(), name)
    troubles = {one.name: one.trouble(must_be_ready=ready) for one in found}
    if any(troubles.values()):
        raise UnreachableError("; ".join(f"{name!r} {trouble}" for name, trouble in troubles.items() if trouble))
    if as_json:
        facts = [{"name": one.name, **one.told.model_dump()} for one in found if one.told is not None]
        typer.echo(json.dumps(facts))
        return
    for one in found:
        if one.told is not None:
            typer.echo(f"{one.name} ({one.told.role}): {one.told.state}, {one.told.sentence}")
