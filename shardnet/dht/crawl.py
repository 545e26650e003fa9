"""One walk through the network: to the k nodes nearest to a key, gathering the records under it on the way.

Unlike the stock crawlers it keeps going while a dead peer is waited for, asks *all* of the k nearest, merges what they hold, and ends in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from kademlia.crawling import SpiderCrawl
from kademlia.node import Node

from shardnet.dht.packets import NOBODY, Contact, Find, Found
from shardnet.dht.protocol import HardenedProtocol
from shardnet.dht.records import Record, RecordVerifier, announcer_of
from shardnet.dht.refusals import Refusals
from shardnet.dht.settings import DhtSettings
from shardnet.errors import RemoteProtocolError

MAX_PAGES = 64
"""Pages read from one holder: a page has at least one record, and a key at most 64."""
MAX_CALLS_AT_ONCE = 32
"""Calls of one walk under way at once, however many peers are silent."""
MAX_ADDRESSES_PER_ID = 3
"""Peers may disagree, honestly or not, about where a node lives: so many of their answers are tried."""


class NewestRecords:
    """Merges the words of many holders: of each node the valid record with the highest sequence, tombstones included."""

    def __init__(self, key: bytes, verifier: RecordVerifier, refusals: Refusals, *, now: float, most: int) -> None:
        """`most`: nodes merged at most; what comes beyond is not looked at."""
        self._key = key
        self._verifier = verifier
        self._refusals = refusals
        self._now = now
        self._most = most
        self._by_node: dict[str, Record] = {}
        self._seen: set[bytes] = set()

    def add(self, raw_records: Iterable[bytes], source: str) -> None:
        """Take in raw records told by `source` (a node id); a bad one is counted and left out."""
        for raw in raw_records:
            if raw in self._seen or len(self._seen) >= 4 * self._most:
                continue
            self._seen.add(raw)
            try:
                record = self._verifier.verify(self._key, raw, self._now)
            except RemoteProtocolError as error:
                self._refusals.note("record", error, source)
                continue
            known = self._by_node.get(record.node_id)
            if known is None or known.sequence < record.sequence:
                self._by_node[record.node_id] = record

    def live(self) -> list[Record]:
        """Returns: the records that are not withdrawn, by node id."""
        return [self._by_node[name] for name in sorted(self._by_node) if not self._by_node[name].is_withdrawn]


class BoundedCrawl(SpiderCrawl):  # type: ignore[misc]
    """`find` may be called once."""

    protocol: HardenedProtocol

    def __init__(
        self, protocol: HardenedProtocol, key: bytes, settings: DhtSettings, newest: NewestRecords | None
    ) -> None:
        """`newest`: where to gather records; None looks for nodes only."""
        target = Node(key)
        near = protocol.router.find_neighbors(target)
        awake = [node for node in near if not protocol.is_silent(node)]
        super().__init__(protocol, target, awake or near, settings.ksize, settings.alpha)
        self._settings = settings
        self._newest = newest
        self._answered: dict[bytes, Node] = {}
        # Digest -> the holders of that set of records, of which more is to be read, each with the last record that it told.
        self._pages: dict[bytes, list[tuple[Node, bytes]]] = {}
        self._unanswered = 0
        self._other_addresses: dict[bytes, list[Contact]] = {}

    async def find(self) -> list[Node]:
        """Walk. Returns: the nodes that answered, nearest first, at most k; fewer or none when time is up. Never raises for what a peer does."""
        try:
            async with asyncio.timeout(self._settings.crawl_timeout_s):
                await self._walk()
                await asyncio.gather(*(self._read_on(digest) for digest in list(self._pages)))
        except TimeoutError:
            pass  # what was found by now is the answer
        answered = sorted(self._answered.values(), key=self.node.distance_to)
        return answered[: self.ksize]

    async def _walk(self) -> None:
        """Keep `alpha` calls under way, and one more for each that missed its first reply: where many died at once, many are tried at once."""
        loop = asyncio.get_running_loop()
        patience_s = self._settings.call_retry_s
        calls: dict[asyncio.Task[None], float] = {}
        try:
            while True:
                now = loop.time()
                late = sum(now - started >= patience_s for started in calls.values())
                self.nearest.maxsize = self.ksize + late  # those beyond the k nearest take the places of the late ones
                free = min(MAX_CALLS_AT_ONCE, self.alpha + 2 * late + self._unanswered) - len(calls)
                for node in self.nearest.get_uncontacted()[: max(0, free)]:
                    self.nearest.mark_contacted(node)
                    calls[loop.create_task(self._ask(node), name="dht find")] = now
                if not calls:
                    return
                done, _ = await asyncio.wait(calls, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del calls[task]
                    task.result()
        finally:
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _ask(self, node: Node) -> None:
        find = Find(self.node.id, NOBODY, wants_contacts=True, wants_records=self._newest is not None)
        found = await self.protocol.call_find(node, find)
        if found is None:
            self._unanswered += 1
            self._try_elsewhere(node)
            return
        self._answered[node.id] = node
        for contact in found.contacts:
            self._consider(contact)
        self._take(node, found)

    def _consider(self, contact: Contact) -> None:
        """A hint about a node: our own proved contact comes before what others say of it."""
        node = self.protocol.router.get(contact.id) or Node(*contact)
        if self.protocol.is_silent(node):
            return
        known = self.nearest.get_node(contact.id)
        if known is None and contact.id not in self.nearest.contacted:
            self.nearest.push(node)
        elif known is not None and (known.ip, known.port) != (contact.host, contact.port):
            others = self._other_addresses.setdefault(contact.id, [])
            if contact not in others and len(others) < MAX_ADDRESSES_PER_ID:
                others.append(contact)

    def _try_elsewhere(self, node: Node) -> None:
        self.nearest.remove([node.id])
        others = self._other_addresses.get(node.id)
        if others:
            self.nearest.contacted.discard(node.id)
            self.nearest.push(Node(*others.pop(0)))

    def _take(self, node: Node, found: Found) -> None:
        if self._newest is None:
            return
        self._newest.add(found.records, node.id.hex())
        if found.has_more:
            self._pages.setdefault(found.digest, []).append((node, found.records[-1]))

    async def _read_on(self, digest: bytes) -> None:
        """Read the rest of one set of records, from the first of its holders that tells it to the end."""
        for node, last in self._pages[digest]:
            if await self._read_pages(node, last):
                return

    async def _read_pages(self, node: Node, last: bytes) -> bool:
        after = _cursor(last)
        for _ in range(MAX_PAGES):
            if after is None:
                return False
            found = await self.protocol.call_find(
                node, Find(self.node.id, after, wants_contacts=False, wants_records=True)
            )
            if found is None:
                return False
            if self._newest is not None:
                self._newest.add(found.records, node.id.hex())
            if not found.has_more:
                return True
            following = _cursor(found.records[-1])
            if following is None or following <= after:
                return False
            after = following
        return False


def _cursor(raw: bytes) -> bytes | None:
    try:
        return bytes.fromhex(announcer_of(raw))
    except RemoteProtocolError:
        return None
