"""`shardnet key add | list | remove`: who may use the HTTP API."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from shardnet.cli import completing
from shardnet.cli.options import AsJson

Name = Annotated[str, typer.Argument(help="Who or what uses it: laptop, alice, my-agent.")]

key = typer.Typer(
    help="Keys of the HTTP API: make, list and remove them. Run it on the coordinator's machine.", no_args_is_help=True
)


@key.command()
def add(
    name: Name,
    may_invite: Annotated[
        bool, typer.Option("--may-invite", help="It may make join tokens too, as the web page's button does.")
    ] = False,
    metrics_only: Annotated[
        bool, typer.Option("--metrics-only", help="It opens /metrics and nothing else: for Prometheus.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once.

    From then on the API wants a key; a running coordinator knows it within a second.
    """
    from shardnet.swarm.api_keys import make_key
    from shardnet.swarm.home import Home

    made = make_key(Home(), name, may_invite=may_invite, metrics_only=metrics_only)
    if as_json:
        typer.echo(json.dumps({"name": name, "key": made}))
        return
    typer.echo(made)
    typer.echo("Keep it: it is not shown again. Clients send it as 'Authorization: Bearer KEY'.", err=True)


@key.command("list")
def list_all(as_json: AsJson = False) -> None:
    """Show the names of all keys, and since when they are."""
    from shardnet.swarm.api_keys import list_keys
    from shardnet.swarm.home import Home
    from shardnet.swarm.records import at

    home = Home()
    keys = list_keys(home)
    if as_json:
        facts = [
            {"name": name, "made_at_s": one.made_at_s, "may_invite": one.may_invite, "metrics_only": one.metrics_only}
            for name, one in (keys or {}).items()
        ]
        typer.echo(json.dumps({"is_asked_for": keys is not None, "keys": facts}))
        return
    for name, one in sorted((keys or {}).items()):
        more = ", may invite" if one.may_invite else ", /metrics only" if one.metrics_only else ""
        typer.echo(f"{name:<24} since {at(one.made_at_s)}{more}")
    if keys is None:
        typer.echo("No key was made here: unless api.key is set, the API wants none.")
    elif not keys:
        typer.echo(_nobody_left(str(home.api_keys)))


@key.command()
def remove(
    name: Annotated[str, typer.Argument(help="The name it was made with.", autocompletion=completing.keys)],
    as_json: AsJson = False,
) -> None:
    """Take a key away; it is refused within a second."""
    from shardnet.swarm.api_keys import remove_key
    from shardnet.swarm.home import Home

    home = Home()
    left = remove_key(home, name)
    if as_json:
        typer.echo(json.dumps({"name": name, "left": left}))
        return
    typer.echo(f"✓ Removed {name}")
    if not left:
        typer.echo(_nobody_left(str(home.api_keys)), err=True)


def _nobody_left(path: str) -> str:
    return (
        f"No key is left, and the API wants one: make one with `shardnet key add`, or delete {path} and start the coordinator anew "
        "to let in everybody who reaches it."
    )
