"""`shardnet swarm init | invite | list | revoke`: the swarm's owner decides who takes part."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated

import typer

from shardnet.cli import completing
from shardnet.errors import UsageError

if TYPE_CHECKING:
    from shardnet.messages import Address
    from shardnet.swarm.home import Home

AsJson = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LONGEST_INVITE_S = 30 * 86_400

swarm = typer.Typer(help="Invite machines, list and revoke members.", no_args_is_help=True)


def parse_duration_s(text: str) -> int:
    """Returns: seconds of `90s`, `30m`, `24h`, `7d`.

    Raises: UsageError for anything else, and for more than 30 days.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text.strip())
    if found is None:
        raise UsageError(f"{text!r} is not a duration: write 90s, 30m, 24h or 7d")
    seconds = int(found[1]) * UNITS_S[found[2]]
    if seconds > LONGEST_INVITE_S:
        raise UsageError(f"an invitation may last 30 days at most, not {text}")
    return seconds


@swarm.command()
def init(as_json: AsJson = False) -> None:
    """Make a new swarm in this machine's home folder.

    The first daemon does it by itself; this makes it sooner.
    """
    from shardnet.ids import short
    from shardnet.log import configure
    from shardnet.swarm.home import Home
    from shardnet.swarm.identity import ensure_swarm, open_swarm

    configure(level="warning")  # what happens is told below
    home = Home()
    if home.has_swarm:
        existing = open_swarm(home)
        whose = "owns" if existing.is_owner else "is a member of"
        raise UsageError(
            f"{home.path} already {whose} swarm {short(existing.swarm_id)}: it can be used as it is; "
            "for another swarm set SHARDNET_HOME to another folder"
        )
    made = ensure_swarm(home)
    if as_json:
        typer.echo(json.dumps({"swarm_id": made.swarm_id, "home": str(home.path)}))
        return
    typer.echo(f"✓ Made swarm {short(made.swarm_id)} in {home.path}")
    typer.echo(f"  Whoever has {home.ca_key} owns the swarm: keep a copy of it in a safe place.")
    typer.echo("  Next: shardnet coordinator here, then shardnet swarm invite for each other machine.")


@swarm.command()
def invite(
    address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of the coordinator's enrolment service, as the new machine reaches it. Default: as last started."
        ),
    ] = None,
    expires: Annotated[str, typer.Option(help="How long the token can be used: 90s, 30m, 24h, 7d.")] = "24h",
    as_json: AsJson = False,
) -> None:
    """Print a join token: it lets in one machine, once."""
    from shardnet.swarm.addresses import is_loopback, parse_address, read_coordinator_addresses
    from shardnet.swarm.home import Home
    from shardnet.swarm.identity import open_swarm
    from shardnet.swarm.membership import invite as make_invite
    from shardnet.swarm.records import at

    home = Home()
    mine = open_swarm(home)
    lifetime_s = parse_duration_s(expires)
    where = parse_address(address, what="--address") if address is not None else _recorded_address(home)
    token = make_invite(mine, where, lifetime_s=lifetime_s)
    only_here = is_loopback(where.host)
    if as_json:
        facts = {
            "token": str(token),
            "address": str(where),
            "expires_at_s": token.expires_at_s,
            "only_this_machine": only_here,
        }
        typer.echo(json.dumps(facts))
        return
    typer.echo(str(token))
    typer.echo(
        f"On the other machine: shardnet join TOKEN  (once, until {at(token.expires_at_s)}, at {where})", err=True
    )
    typer.echo("It will be called by its host name; `--name NAME` there calls it otherwise.", err=True)
    enrols_at = read_coordinator_addresses(home).enrol
    if not only_here and enrols_at is not None and is_loopback(enrols_at.host):
        typer.echo(
            f"⚠️  The coordinator takes machines in at {enrols_at} only: start it with --enrol 0.0.0.0:{enrols_at.port}, "
            "or the token finds nobody.",
            err=True,
        )
    if only_here:
        typer.echo(
            f"⚠️  {where.host} is this machine only. For others start the coordinator on an address of your network, or give --address.",
            err=True,
        )


def _recorded_address(home: Home) -> Address:
    """Where the coordinator of this home takes in machines, as others can dial it."""
    from shardnet.hosts import own_address
    from shardnet.swarm.addresses import is_wildcard, read_coordinator_addresses

    recorded = read_coordinator_addresses(home).enrol
    if recorded is None:
        raise UsageError(
            "no coordinator has run in this home yet, so its address is not known: start `shardnet coordinator`, "
            "or give --address HOST:PORT of its enrolment service"
        )
    if not is_wildcard(recorded.host):
        return recorded
    own = own_address(ipv6=":" in recorded.host)
    if own is None:
        raise UsageError(
            "this machine has no address in a network: give --address HOST:PORT, as the new machine reaches it"
        )
    return recorded.model_copy(update={"host": own})


@swarm.command("list")
def list_members(as_json: AsJson = False) -> None:
    """Show members, revoked members and open invitations."""
    import time

    from shardnet.ids import short
    from shardnet.swarm.home import Home
    from shardnet.swarm.identity import open_swarm
    from shardnet.swarm.membership import membership
    from shardnet.swarm.records import at

    home = Home()
    mine = open_swarm(home)
    known = membership(home)
    if as_json:
        members = [
            {"node_id": node, **one.model_dump(), "revoked": node in known.revoked}
            for node, one in known.members.items()
        ]
        facts = {
            "swarm_id": mine.swarm_id,
            "owner": mine.is_owner,
            "members": members,
            "revoked": [{"node_id": node, **one.model_dump()} for node, one in known.revoked.items()],
            "invites": [
                one.model_dump(include={"created_at_s", "expires_at_s", "address"}) for one in known.invites.values()
            ],
        }
        typer.echo(json.dumps(facts))
        return
    typer.echo(
        f"Swarm {short(mine.swarm_id)} in {home.path}" + ("" if mine.is_owner else " (owned by another machine)")
    )
    if not mine.is_owner:
        typer.echo("Only the owner's machine knows all members; these are this machine's.")
    for node, one in sorted(known.members.items(), key=lambda item: item[1].joined_at_s):
        state = "expired" if one.expires_at_s < time.time() else f"until {at(one.expires_at_s)[:10]}"
        if node in known.revoked:
            state = f"REVOKED {at(known.revoked[node].revoked_at_s)}"
        typer.echo(f"  {short(node)}  {one.name:<20} {one.how:<8} since {at(one.joined_at_s)[:16]}  {state}")
    for node, gone in known.revoked.items():
        if node not in known.members:
            typer.echo(f"  {short(node)}  {gone.name or '-':<20} REVOKED {at(gone.revoked_at_s)}")
    if not known.members:
        typer.echo("  no members yet")
    for open_one in known.invites.values():
        typer.echo(f"  open invitation for {open_one.address}, until {at(open_one.expires_at_s)}")


@swarm.command()
def revoke(
    node: Annotated[
        str, typer.Argument(help="A node's id, the beginning of it, or its name.", autocompletion=completing.members)
    ],
    as_json: AsJson = False,
) -> None:
    """End a membership: a node is cut off within seconds."""
    from shardnet.ids import short
    from shardnet.swarm.home import Home
    from shardnet.swarm.identity import open_swarm
    from shardnet.swarm.membership import revoke as end_membership

    node_id, name, changed = end_membership(open_swarm(Home()), node)
    if as_json:
        typer.echo(json.dumps({"node_id": node_id, "name": name, "changed": changed}))
        return
    who = f"{name} ({short(node_id)})" if name else node_id
    typer.echo(f"✓ Revoked {who}" if changed else f"{who} was revoked before; nothing to do")
