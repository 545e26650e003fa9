"""What was refused: counted always, logged once for each kind and source, so that a flood fills no disk."""

from __future__ import annotations

from collections import Counter

from shardnet.errors import RemoteProtocolError
from shardnet.log import get

log = get("dht")

MAX_SOURCES = 256
"""Log lines of one kind at most: sources of datagrams can be forged."""


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
        log.warning("dht_rejected", what=what, reason=str(error), source=source, kind=kind)

    def count(self, kind: str) -> None:
        """Count something that happens in ordinary life too, and is not worth a line."""
        self._counts[kind] += 1

    def counts(self) -> dict[str, int]:
        """Returns: refusals by kind since the start."""
        return dict(self._counts)
