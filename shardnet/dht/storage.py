"""What a node keeps for the network: under each key one record a node, the one with the highest sequence, until it expires.

Several providers of one key stand side by side. Withdrawn records stay as tombstones until their time is up, so that a copy which comes
late from elsewhere cannot bring the withdrawn one back. Pure: the clock is a callable; no sockets.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from kademlia.storage import IStorage

from shardnet.dht.packets import DIGEST_BYTES
from shardnet.dht.records import Record, RecordVerifier
from shardnet.errors import RemoteProtocolError


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """Caps against a member that announces without end."""

    holders_per_key: int = 64
    keys: int = 10_000
    records: int = 50_000
    keys_per_node: int = 1_024


@dataclass(slots=True)
class _Shelf:
    """The records of one key. `order` is the node ids, sorted, and `digest` their summary; both are None when stale."""

    by_node: dict[str, Record] = field(default_factory=dict)
    order: list[str] | None = None
    digest: bytes | None = None

    def changed(self) -> None:
        self.order = self.digest = None


class RecordStorage(IStorage):  # type: ignore[misc]
    """kademlia's storage with merging in place of overwriting.

    Invariants: every record was verified under its key; `_keys_of[node]` counts the keys under which that node has a record; `_count` is their sum;
    every record has an entry in `_by_expiry`, which is rebuilt when renewals have left it mostly stale.
    """

    def __init__(self, verifier: RecordVerifier, limits: StorageLimits, *, clock: Callable[[], float]) -> None:
        self._verifier = verifier
        self._limits = limits
        self._clock = clock
        self._shelves: dict[bytes, _Shelf] = {}
        self._keys_of: Counter[str] = Counter()
        self._by_expiry: list[tuple[int, bytes, str, int]] = []
        self._count = 0

    def merge(self, key: bytes, raw: bytes) -> Record:
        """Take in one record, unless a newer one of that node is here.

        Returns: the record that now stands for that node. Raises: RemoteProtocolError: not valid (see `RecordVerifier.verify`), or reason `full`.
        """
        now = self._clock()
        self.expire(now)
        record = self._verifier.verify(key, raw, now)
        shelf = self._shelves.get(key)
        known = shelf.by_node.get(record.node_id) if shelf else None
        if known is not None and known.sequence >= record.sequence:
            return known
        if known is None:
            self._make_room(key, shelf, record)
            self._keys_of[record.node_id] += 1
            self._count += 1
        shelf = self._shelves.setdefault(key, _Shelf())
        shelf.by_node[record.node_id] = record
        shelf.changed()
        heapq.heappush(self._by_expiry, (record.expires_at, key, record.node_id, record.sequence))
        if len(self._by_expiry) > 4 * self._count + 1_000:
            self._rebuild_expiry()
        return record

    def _rebuild_expiry(self) -> None:
        self._by_expiry = [
            (record.expires_at, key, node_id, record.sequence)
            for key, shelf in self._shelves.items()
            for node_id, record in shelf.by_node.items()
        ]
        heapq.heapify(self._by_expiry)

    def _make_room(self, key: bytes, shelf: _Shelf | None, record: Record) -> None:
        """Those who are here stay: a flood of new names must not push out honest holders. Only tombstones give way."""
        limits = self._limits
        if shelf is None and len(self._shelves) >= limits.keys:
            raise RemoteProtocolError(f"{limits.keys} keys are kept already", reason="full")
        if self._keys_of[record.node_id] >= limits.keys_per_node:
            raise RemoteProtocolError(f"the node has {limits.keys_per_node} keys already", reason="full")
        if shelf is not None and len(shelf.by_node) >= limits.holders_per_key:
            tombstones = [(held.expires_at, held.node_id) for held in shelf.by_node.values() if held.is_withdrawn]
            if not tombstones or record.is_withdrawn:
                raise RemoteProtocolError(f"the key has {limits.holders_per_key} holders already", reason="full")
            self._drop(key, min(tombstones)[1])
        if self._count >= limits.records:
            raise RemoteProtocolError(f"{limits.records} records are kept already", reason="full")

    def records(self, key: bytes) -> list[Record]:
        """Returns: what is held under `key`, tombstones too, by node id."""
        self.expire(self._clock())
        shelf = self._shelves.get(key)
        return [shelf.by_node[node_id] for node_id in _order(shelf)] if shelf else []

    def page(self, key: bytes, after: str, most: int) -> tuple[list[Record], bool, bytes]:
        """One page of the records under `key`, by node id.

        Args:
            after: a node id; the page starts behind it. `""` starts at the beginning.
            most: records a page.

        Returns: the records, whether more follow, and the digest of the whole set (8 bytes; zeros for none).
        """
        self.expire(self._clock())
        shelf = self._shelves.get(key)
        if shelf is None:
            return [], False, bytes(DIGEST_BYTES)
        later = (node_id for node_id in _order(shelf) if node_id > after)
        names = list(islice(later, most + 1))
        return [shelf.by_node[name] for name in names[:most]], len(names) > most, _digest(shelf)

    def expire(self, now: float) -> int:
        """Forget what is over. Returns: how many records went."""
        gone = 0
        while self._by_expiry and self._by_expiry[0][0] <= now:
            _, key, node_id, sequence = heapq.heappop(self._by_expiry)
            shelf = self._shelves.get(key)
            if shelf and node_id in shelf.by_node and shelf.by_node[node_id].sequence == sequence:
                self._drop(key, node_id)
                gone += 1
        return gone

    def forget(self, key: bytes, node_id: str) -> None:
        """Forget what a node announced under `key`. Harmless when it is not here."""
        shelf = self._shelves.get(key)
        if shelf is not None and node_id in shelf.by_node:
            self._drop(key, node_id)

    def forget_revoked(self) -> int:
        """Forget what nodes announced that were revoked since. Returns: how many records went."""
        revoked = self._verifier.revoked() & self._keys_of.keys()
        if not revoked:
            return 0
        theirs = [(key, node_id) for key, shelf in self._shelves.items() for node_id in revoked & shelf.by_node.keys()]
        for key, node_id in theirs:
            self._drop(key, node_id)
        return len(theirs)

    def _drop(self, key: bytes, node_id: str) -> None:
        shelf = self._shelves[key]
        del shelf.by_node[node_id]
        shelf.changed()
        self._count -= 1
        self._keys_of[node_id] -= 1
        if not self._keys_of[node_id]:
            del self._keys_of[node_id]
        if not shelf.by_node:
            del self._shelves[key]

    def held_keys(self) -> list[bytes]:
        """Returns: the keys under which anything is held."""
        return list(self._shelves)

    def check(self) -> None:
        """For tests: raise AssertionError if an invariant is broken."""
        counted = Counter(node_id for shelf in self._shelves.values() for node_id in shelf.by_node)
        assert counted == self._keys_of, "the count of keys a node has is wrong"
        assert counted.total() == self._count, "the count of records is wrong"
        assert all(shelf.by_node for shelf in self._shelves.values()), "an empty shelf was kept"
        waiting = {(key, node_id, sequence) for _, key, node_id, sequence in self._by_expiry}
        for key, shelf in self._shelves.items():
            for node_id, record in shelf.by_node.items():
                assert (key, node_id, record.sequence) in waiting, "a record that would never expire"

    def __len__(self) -> int:
        return self._count

    # IStorage, as kademlia calls it: a value is the list of a key's raw records.

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.merge(key, value)

    def __getitem__(self, key: bytes) -> list[bytes]:
        found = self.records(key)
        if not found:
            raise KeyError(key)
        return [record.raw for record in found]

    def get(self, key: bytes, default: list[bytes] | None = None) -> list[bytes] | None:
        """Returns: the raw records under `key`, or `default`."""
        return [record.raw for record in self.records(key)] or default

    def iter_older_than(self, seconds_old: float) -> Iterator[tuple[bytes, list[bytes]]]:
        """Returns: nothing, ever: only the announcer itself renews a lease; a holder that republished would keep the dead alive."""
        return iter(())

    def __iter__(self) -> Iterator[tuple[bytes, list[bytes]]]:
        return ((key, self[key]) for key in self.held_keys() if key in self._shelves)


def _order(shelf: _Shelf) -> list[str]:
    if shelf.order is None:
        shelf.order = sorted(shelf.by_node)
    return shelf.order


def _digest(shelf: _Shelf) -> bytes:
    if shelf.digest is None:
        parts = b"".join(
            bytes.fromhex(name) + shelf.by_node[name].sequence.to_bytes(8, "big") for name in _order(shelf)
        )
        shelf.digest = hashlib.sha256(parts).digest()[:DIGEST_BYTES]
    return shelf.digest
