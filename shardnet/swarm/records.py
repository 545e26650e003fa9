"""What the owner's machine remembers of members, invitations and revocations. Pure data and decisions; `home` does the writing."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, TypeAdapter

from shardnet.errors import PeerRefused, UsageError
from shardnet.ids import NodeId, Sha256, short
from shardnet.shards import Frozen

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
MIN_PREFIX_CHARS = 4
KEEP_USED_INVITES_S = 30 * 86_400
"""How long a spent invitation is remembered, so that its second use can be told from a wrong token."""


class Member(Frozen):
    """One certificate that was issued."""

    name: str = Field(pattern=NAME_PATTERN)
    joined_at_s: float = Field(description="Unix time")
    how: Literal["local", "invited"] = Field(description="made on the owner's machine, or by a join token")
    expires_at_s: float = Field(description="Unix time at which its certificate ends")


class Invite(Frozen):
    """One join token. Its secret is not kept, only the secret's hash."""

    created_at_s: float
    expires_at_s: float
    address: str = Field(default="", max_length=300)
    used_at_s: float | None = None
    used_by: NodeId | None = None


class Revocation(Frozen):
    """One member that no longer is."""

    name: str = Field(default="", max_length=64)
    revoked_at_s: float


Members = dict[NodeId, Member]
Invites = dict[Sha256, Invite]
Revocations = dict[NodeId, Revocation]
MEMBERS: TypeAdapter[Members] = TypeAdapter(Members)
INVITES: TypeAdapter[Invites] = TypeAdapter(Invites)
REVOCATIONS: TypeAdapter[Revocations] = TypeAdapter(Revocations)


def at(unix_s: float) -> str:
    """Returns: `2026-11-21 08:00:00 UTC`."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def secret_hash(secret: bytes) -> str:
    """Returns: what is kept of an invitation's secret."""
    return hashlib.sha256(secret).hexdigest()


def open_invites(invites: Invites, now_s: float) -> Invites:
    """Returns: those that can still be used."""
    return {key: one for key, one in invites.items() if one.used_at_s is None and one.expires_at_s > now_s}


def with_invite(invites: Invites, secret: bytes, invite: Invite) -> Invites:
    """Returns: the invitations with one more, long-spent ones left out."""
    oldest = invite.created_at_s - KEEP_USED_INVITES_S
    return {key: one for key, one in invites.items() if one.expires_at_s > oldest} | {secret_hash(secret): invite}


def spend(invites: Invites, secret: bytes, node_id: str, now_s: float) -> Invites:
    """Use an invitation for the key behind `node_id`. The same key may ask again: its answer may have been lost on the way.

    Returns: the invitations, this one marked as used.
    Raises: PeerRefused with a sentence of its own for an unknown, an expired and a used one.
    """
    wanted = secret_hash(secret)
    found = next((key for key in invites if hmac.compare_digest(key, wanted)), None)
    if found is None:
        raise PeerRefused("this swarm never made this join token: ask its owner for one (`shardnet swarm invite`)")
    invite = invites[found]
    if invite.used_at_s is not None and invite.used_by != node_id:
        raise PeerRefused(
            f"this join token was already used at {at(invite.used_at_s)} by node {short(invite.used_by or '?')}: "
            "each token lets in one machine, ask the swarm's owner for another (`shardnet swarm invite`)"
        )
    if invite.expires_at_s <= now_s:
        raise PeerRefused(expired_sentence(invite.expires_at_s))
    return invites | {found: invite.model_copy(update={"used_at_s": invite.used_at_s or now_s, "used_by": node_id})}


def expired_sentence(expires_at_s: float) -> str:
    """Returns: what a person with an expired token reads, wherever it is noticed."""
    return (
        f"this join token expired at {at(expires_at_s)}: ask the swarm's owner for a new one (`shardnet swarm invite`)"
    )


def find_member(members: Members, who: str) -> str:
    """Returns: the node id that `who` means: an id, the beginning of one, or a name. A whole id needs no record.

    Raises: UsageError if nobody or several are meant.
    """
    who_id = who.lower()
    is_hex = all(digit in "0123456789abcdef" for digit in who_id)
    if is_hex and len(who_id) == 40:
        return who_id
    by_prefix = [node for node in members if is_hex and len(who) >= MIN_PREFIX_CHARS and node.startswith(who_id)]
    found = sorted({node for node, member in members.items() if member.name == who} | set(by_prefix))
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{node} ({members[node].name})" for node in found)
        raise UsageError(f"{who!r} means several nodes: {listed}; say which by its id")
    known = ", ".join(f"{short(node)} ({member.name})" for node, member in sorted(members.items())) or "none"
    raise UsageError(f"no node of this swarm is called {who!r}; known are: {known}")
