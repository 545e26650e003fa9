"""What was refused: counted always, logged once for each kind and source, so that a flood fills no disk; and what each kind means to a person.

What happens in a healthy swarm too is no warning: the line says that nothing is to be done, or is written at debug level alone.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from shardnet.errors import RemoteProtocolError
from shardnet.log import get

log = get("dht")

MAX_SOURCES = 256
"""Log lines of one kind at most: sources of datagrams can be forged."""

Level = Literal["debug", "info", "warning"]
NOTHING = "nothing is to be done"
MEANINGS: dict[str, tuple[Level, str]] = {
    "datagram_unsealed": (
        "info",
        f"another swarm or another program uses this address; {NOTHING}, unless a machine of this swarm should be there: then let it join this one",
    ),
    "datagram_misdirected": ("debug", f"its sender knows who was at this address before; {NOTHING}"),
    "datagram_own_id": ("warning", "another process has this node's key: a copied home; let that one join anew"),
    "datagram_replayed": ("debug", f"a network may deliver a datagram twice; {NOTHING}"),
    "datagram_unasked": ("debug", f"its sender answers somebody who was at this address before; {NOTHING}"),
    "datagram_revoked": ("info", "it is a machine that was thrown out; nothing of it is believed"),
    "datagram_skewed": ("warning", "until then the two do not find each other"),
    "record_expired": ("debug", f"who announced it has gone or will say it again; {NOTHING}"),
    "record_revoked": ("info", "it is of a machine that was thrown out; nothing of it is believed"),
    "record_address": (
        "info",
        "a node told others an address at which only its own machine reaches it; "
        "if others are to reach it, start it with --listen 0.0.0.0:PORT, else nothing is to be done",
    ),
    "record_full": ("info", "others keep it; dht.max_records and its neighbours allow more"),
}
"""`what_reason` -> how loud, and what it means. What is not here has no innocent reason."""
SUSPECT: tuple[Level, str] = (
    "warning",
    "if it comes again and again, look at the machine that it is from: its version, or who runs it",
)


class Refusals:
    """Counts by `what_reason`, for example `datagram_unsealed` or `record_signature`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._told: dict[str, set[str]] = {}

    def note(self, what: str, error: RemoteProtocolError, source: str) -> None:
        """Count one refusal of a `what` ("datagram", "record", "contact") from `source` (an IP address)."""
        kind = f"{what}_{error.facts.get('reason', 'other')}"
        self._counts[kind] += 1
        told = self._told.setdefault(kind, set())
        if source in told or len(told) >= MAX_SOURCES:
            return
        told.add(source)
        level, meaning = MEANINGS.get(kind, SUSPECT)
        say = {"debug": log.debug, "info": log.info, "warning": log.warning}[level]
        say("dht_rejected", what=what, reason=str(error), source=source, kind=kind, meaning=meaning)

    def count(self, kind: str) -> None:
        """Count something that happens in ordinary life too, and is not worth a line."""
        self._counts[kind] += 1

    def counts(self) -> dict[str, int]:
        """Returns: refusals by kind since the start."""
        return dict(self._counts)
