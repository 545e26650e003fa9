"""What the swarm's owner does: invite, list, revoke. And how running daemons learn of a revocation within a second or so."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from shardnet.messages import Address
from shardnet.swarm import tokens
from shardnet.swarm.authority import fingerprint
from shardnet.swarm.following import FOLLOW_INTERVAL_S, follow_records
from shardnet.swarm.home import Home, read_records, write_records
from shardnet.swarm.identity import Identity, SwarmIdentity
from shardnet.swarm.records import (
    INVITES,
    MEMBERS,
    REVOCATIONS,
    Invite,
    Invites,
    Members,
    Revocation,
    Revocations,
    find_member,
    open_invites,
    with_invite,
)


@dataclass(frozen=True, slots=True)
class Membership:
    """Everything the owner's machine knows about who takes part."""

    members: Members
    revoked: Revocations
    invites: Invites


def invite(
    swarm: SwarmIdentity, address: Address, *, lifetime_s: float, now_s: float | None = None
) -> tokens.JoinToken:
    """Returns: a token that lets in one machine, once, for `lifetime_s` seconds.

    Raises: SettingsError where this machine does not own the swarm.
    """
    swarm.ca_key()
    now_s = time.time() if now_s is None else now_s
    secret = tokens.new_secret()
    expires_at_s = int(now_s + lifetime_s)
    with swarm.home.locked():
        known = read_records(swarm.home.invites, INVITES, {})
        new_invite = Invite(created_at_s=now_s, expires_at_s=expires_at_s, address=str(address))
        write_records(swarm.home.invites, INVITES, with_invite(known, secret, new_invite))
    return tokens.JoinToken(address=address, ca_sha256=fingerprint(swarm.ca), secret=secret, expires_at_s=expires_at_s)


def membership(home: Home, *, now_s: float | None = None) -> Membership:
    """Returns: members, revocations and the invitations that are still open."""
    return Membership(
        members=read_records(home.members, MEMBERS, {}),
        revoked=read_records(home.revoked, REVOCATIONS, {}),
        invites=open_invites(read_records(home.invites, INVITES, {}), time.time() if now_s is None else now_s),
    )


def revoke(swarm: SwarmIdentity, who: str) -> tuple[str, str, bool]:
    """End a membership; running coordinators notice within a second or two. Repeating it is harmless.

    Args:
        who: a node id, the beginning of one, or a name.

    Returns: node id, name (empty if unknown), and whether this call made the difference.
    Raises: UsageError if nobody or several are meant; SettingsError where this machine does not own the swarm.
    """
    swarm.ca_key()
    home = swarm.home
    with home.locked():
        members = read_records(home.members, MEMBERS, {})
        node_id = find_member(members, who)
        name = members[node_id].name if node_id in members else ""
        revoked = read_records(home.revoked, REVOCATIONS, {})
        if node_id in revoked:
            return node_id, name, False
        revoked[node_id] = Revocation(name=name, revoked_at_s=time.time())
        write_records(home.revoked, REVOCATIONS, revoked)
        return node_id, name, True


def remember_revoked(identity: Identity, node_ids: frozenset[str]) -> None:
    """Keep a list that the coordinator sent, for the next start. The owner's own file is the authority and stays as it is. Writes a file."""
    if identity.is_owner:
        return
    home = identity.home
    with home.locked():
        known = read_records(home.revoked, REVOCATIONS, {})
        now_s = time.time()
        new = {node_id: known.get(node_id) or Revocation(revoked_at_s=now_s) for node_id in sorted(node_ids)}
        write_records(home.revoked, REVOCATIONS, new)


async def follow_revocations(
    identity: Identity,
    on_change: Callable[[frozenset[str]], None] | None = None,
    *,
    interval_s: float = FOLLOW_INTERVAL_S,
) -> None:
    """Keep `identity.revoked` like the home's file until cancelled, as `follow_records` does: who was revoked stays revoked."""

    def take(records: Revocations) -> None:
        node_ids = frozenset(records)
        changed = node_ids != identity.revoked
        identity.set_revoked(node_ids)
        if changed and on_change is not None:
            on_change(node_ids)

    await follow_records(identity.home.revoked, REVOCATIONS, take, interval_s=interval_s)
