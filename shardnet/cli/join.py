"""`shardnet join TOKEN`: let this machine into somebody's swarm."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def join(
    token: Annotated[
        str, typer.Argument(help="The token that `shardnet swarm invite` printed on the owner's machine.")
    ],
    name: Annotated[
        str | None, typer.Option(help="What this machine's node is called; its host name if nothing is said.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Move the keys of another swarm in this home aside; nothing is deleted.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Make this machine a member of a swarm, with a join token.

    It obtains a certificate with which its nodes take part.
    """
    from shardnet.ids import short
    from shardnet.lifecycle import run_loop
    from shardnet.log import configure
    from shardnet.swarm.addresses import is_loopback, read_coordinator_addresses
    from shardnet.swarm.enrol import enrol
    from shardnet.swarm.home import Home
    from shardnet.swarm.identity import checked_name
    from shardnet.swarm.naming import machine_name
    from shardnet.swarm.tokens import parse_token

    configure(level="warning")  # what happens is told below
    parsed, home = parse_token(token), Home()
    wanted = machine_name() if name is None else checked_name(name)
    with run_loop(enrol(parsed, home, wanted, replace=replace)) as identity:
        coordinator = read_coordinator_addresses(home).nodes
        facts = {
            "swarm_id": identity.swarm.swarm_id,
            "node_id": identity.node_id,
            "name": identity.name,
            "home": str(home.path),
            "coordinator": str(coordinator) if coordinator else None,
        }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"✓ Joined swarm {short(str(facts['swarm_id']))} as {facts['name']} ({short(str(facts['node_id']))})")
    if facts["name"] != wanted:
        typer.echo(f"  Another member is called {wanted}; --name gives this machine another name.")
    known = f" (its coordinator is {coordinator})" if coordinator else ""
    listen = "" if coordinator is None or is_loopback(coordinator.host) else " --listen 0.0.0.0:7710"
    typer.echo(f"  Start a node with: shardnet node{listen}{known}")
