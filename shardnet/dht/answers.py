"""What this node says when another one asks: who it is, which contacts and records are near a key, and how many of the records sent it keeps."""

from __future__ import annotations

from collections.abc import Iterable

from kademlia.node import Node

from shardnet.dht.packets import (
    NOBODY,
    Body,
    Contact,
    Find,
    Found,
    Packet,
    Ping,
    Pong,
    Store,
    Stored,
    pong_statement,
    records_per_page,
)
from shardnet.dht.records import Signer, compressed_public_key, sign_raw
from shardnet.dht.refusals import Refusals
from shardnet.dht.routing import ExactRoutingTable
from shardnet.dht.storage import RecordStorage
from shardnet.errors import RemoteProtocolError


class Answers:
    """Answers requests at once, from what is here.

    Args:
        node_id: ours.
    """

    def __init__(
        self,
        node_id: bytes,
        signer: Signer,
        router: ExactRoutingTable,
        storage: RecordStorage,
        refusals: Refusals,
    ) -> None:
        self._node_id = node_id
        self._signer = signer
        self._public_key = compressed_public_key(signer.public_key_bytes)
        self._router = router
        self._storage = storage
        self._refusals = refusals

    def to(self, request: Packet) -> Body:
        """Returns: the answer to a Ping, Find or Store."""
        match request.body:
            case Ping(challenge):
                statement = pong_statement(challenge, request.source, self._node_id)
                return Pong(self._public_key, sign_raw(self._signer, statement))
            case Find() as find:
                return self._find(find, request.source)
            case Store(key, records):
                return self.store(key, records, request.source)
            case other:
                raise AssertionError(f"{other} is no request")

    def _find(self, find: Find, asker: bytes) -> Found:
        contacts: tuple[Contact, ...] = ()
        if find.wants_contacts:
            near = self._router.find_neighbors(Node(find.key), exclude=Node(asker))
            contacts = tuple(Contact(node.id, node.ip, node.port) for node in near)
        if not find.wants_records:
            return Found(bytes(8), False, contacts, ())
        after = "" if find.after == NOBODY else find.after.hex()
        records, has_more, digest = self._storage.page(find.key, after, records_per_page(len(contacts)))
        return Found(digest, has_more, contacts, tuple(record.raw for record in records))

    def store(self, key: bytes, records: Iterable[bytes], asker: bytes) -> Stored:
        """Keep those of the raw records that are good, and for which there is room. Returns: how many are kept and refused."""
        kept = refused = 0
        for raw in records:
            try:
                self._storage.merge(key, raw)
                kept += 1
            except RemoteProtocolError as error:
                refused += 1
                self._refusals.note("record", error, asker.hex())
        return Stored(kept, refused)
