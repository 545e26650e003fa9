"""When each contact was heard last, and who let a whole call go by. Seconds of the monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Iterable

from kademlia.node import Node


class Hearing:
    """Invariant: a silent id has not been heard since it fell silent.

    Args:
        interval_s: so long somebody silent is left alone, and so long a contact need not be heard.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._silent_until: dict[bytes, float] = {}
        self._last_heard: dict[bytes, float] = {}

    def heard(self, node_id: bytes) -> None:
        """A contact gave a sign of life."""
        self._silent_until.pop(node_id, None)
        self._last_heard[node_id] = time.monotonic()

    def was_heard_since(self, node_id: bytes, since_s: float) -> bool:
        """True if it gave one at or after `since_s`."""
        return self._last_heard.get(node_id, 0) >= since_s

    def fell_silent(self, node_id: bytes) -> None:
        """It let a whole call go by."""
        self._silent_until[node_id] = time.monotonic() + self._interval_s
        self._last_heard.pop(node_id, None)

    def is_silent(self, node_id: bytes) -> bool:
        """True if it did so a short while ago, so that asking it again would only cost time."""
        return self._silent_until.get(node_id, 0) > time.monotonic()

    def quiet(self, contacts: Iterable[Node]) -> list[Node]:
        """Returns: those of all contacts that were not heard for the interval. Forgets who is none, and who was silent long ago."""
        now = time.monotonic()
        self._silent_until = {node_id: until for node_id, until in self._silent_until.items() if until > now}
        nodes = list(contacts)
        names = {node.id for node in nodes}
        self._last_heard = {node_id: at for node_id, at in self._last_heard.items() if node_id in names}
        return [node for node in nodes if not self.was_heard_since(node.id, now - self._interval_s)]
