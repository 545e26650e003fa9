"""What members are called: a machine by its own host name, and no two living members alike. Pure but for `machine_name`."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Mapping
from itertools import count

from shardnet.swarm.records import Members

MOST_CHARS = 63
FALLBACK = "node"
NAMELESS = frozenset({"", "localhost", "localhost6"})
"""Host names that say nothing of a machine."""


def machine_name() -> str:
    """Returns: this machine's host name, without its domain, as a member's name; `node` for a machine without a name of its own."""
    return legal_name(socket.gethostname().partition(".")[0])


def legal_name(text: str) -> str:
    """Returns: the text with what a member's name cannot have made `-`: letters, digits, `.`, `_` and `-`, at most 63, the first one no mark."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:MOST_CHARS].strip("._-")
    return FALLBACK if name.lower() in NAMELESS else name


def unique_name(wanted: str, taken: Collection[str]) -> str:
    """Returns: `wanted`, or the first of `wanted-2`, `wanted-3`, ... that is not taken."""
    if wanted not in taken:
        return wanted
    numbered = (f"{wanted[: MOST_CHARS - len(end)]}{end}" for end in (f"-{number}" for number in count(2)))
    return next(name for name in numbered if name not in taken)


def names_taken(members: Members, revoked: Mapping[str, object], now_s: float, *, but: str = "") -> set[str]:
    """Returns: names of members that still are members, `but` one (a node id)."""
    return {
        member.name
        for node_id, member in members.items()
        if node_id != but and node_id not in revoked and member.expires_at_s > now_s
    }
