"""The seven DHT messages as bytes, and back. Fixed layouts, every length checked: nothing is allocated that a peer merely claims.

    PING  challenge                     -> PONG   public key and signature over the challenge: proves the node id
    FIND  key, after, what is wanted    -> FOUND  nearest contacts, one page of records, digest of all records held
    STORE key, records                  -> STORED how many were kept
    LEAVE                               -> nothing: "I am going; see for yourself"

Inside the seal, before each: operation, call id, sender, receiver. The receiver's id keeps a recorded datagram from being
replayed to somebody else; it is zero only in a PING to an address whose id is not known yet.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from shardnet.dht.addresses import ADDRESS_BYTES, pack_host, unpack_host
from shardnet.dht.records import KEY_BYTES, PUBLIC_KEY_BYTES, RECORD_BYTES, SIGNATURE_BYTES
from shardnet.dht.sealing import MAX_PAYLOAD_BYTES
from shardnet.errors import RemoteProtocolError

ID_BYTES = 20
CALL_ID_BYTES = 8
CHALLENGE_BYTES = 32
DIGEST_BYTES = 8
NOBODY = bytes(ID_BYTES)
"""Stands for the receiver while its id is unknown, and for "from the start" in `Find.after`."""

_HEADER = struct.Struct(f">B{CALL_ID_BYTES}s{ID_BYTES}s{ID_BYTES}s")
_CONTACT = struct.Struct(f">{ID_BYTES}s{ADDRESS_BYTES}sH")
_FIND = struct.Struct(f">{KEY_BYTES}s{ID_BYTES}sB")
_FOUND = struct.Struct(f">{DIGEST_BYTES}s?BB")
_STORE = struct.Struct(f">{KEY_BYTES}sB")
_STORED = struct.Struct(">BB")
_PONG = struct.Struct(f">{PUBLIC_KEY_BYTES}s{SIGNATURE_BYTES}s")
_PING_PADDING = _PONG.size - CHALLENGE_BYTES
"""A PING is as long as its answer, so that a replayed one multiplies nothing."""

_ROOM = MAX_PAYLOAD_BYTES - _HEADER.size
RECORDS_PER_STORE = (_ROOM - _STORE.size) // RECORD_BYTES


def records_per_page(contacts: int) -> int:
    """Returns: how many records fit a FOUND beside that many contacts."""
    return (_ROOM - _FOUND.size - contacts * _CONTACT.size) // RECORD_BYTES


class Operation(IntEnum):
    """The first byte. Odd ones are requests; the answer, if there is one, is the next number."""

    PING = 1
    PONG = 2
    FIND = 3
    FOUND = 4
    STORE = 5
    STORED = 6
    LEAVE = 7


class Contact(NamedTuple):
    """A peer of the DHT: node id (20 bytes), IP address, UDP port."""

    id: bytes
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Who is at this address? `challenge`: 32 random bytes."""

    challenge: bytes
    operation = Operation.PING


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping. `public_key`: compressed point; `signature`: over `pong_statement`."""

    public_key: bytes
    signature: bytes
    operation = Operation.PONG


@dataclass(frozen=True, slots=True)
class Find:
    """Contacts near `key`, records under it, or both. `after`: only records of node ids beyond this one."""

    key: bytes
    after: bytes
    wants_contacts: bool
    wants_records: bool
    operation = Operation.FIND


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a find. `digest` names the whole set held, so that equal sets are read from one holder only."""

    digest: bytes
    has_more: bool
    contacts: tuple[Contact, ...]
    records: tuple[bytes, ...]
    operation = Operation.FOUND


@dataclass(frozen=True, slots=True)
class Store:
    """Keep these records (raw, 139 bytes each) under `key`."""

    key: bytes
    records: tuple[bytes, ...]
    operation = Operation.STORE


@dataclass(frozen=True, slots=True)
class Stored:
    """The answer to a store. `kept` counts records that are held now; `refused` the others."""

    kept: int
    refused: int
    operation = Operation.STORED


@dataclass(frozen=True, slots=True)
class Leave:
    """The sender is about to close. Not believed: whoever hears it pings, and drops the contact when nobody answers."""

    operation = Operation.LEAVE


Body = Ping | Pong | Find | Found | Store | Stored | Leave


@dataclass(frozen=True, slots=True)
class Packet:
    """One message with its envelope: ids are 20 bytes, `call_id` 8."""

    call_id: bytes
    source: bytes
    target: bytes
    body: Body


def pong_statement(challenge: bytes, asker: bytes, answerer: bytes) -> bytes:
    """Returns: what a pong signs: made for this asker and this moment, of use for nothing else."""
    return b"shardnet dht pong\n" + challenge + asker + answerer


def encode(packet: Packet) -> bytes:
    """Returns: the payload to be sealed."""
    body = packet.body
    head = _HEADER.pack(body.operation, packet.call_id, packet.source, packet.target)
    match body:
        case Ping(challenge):
            return head + challenge + bytes(_PING_PADDING)
        case Pong(public_key, signature):
            return head + _PONG.pack(public_key, signature)
        case Find(key, after, wants_contacts, wants_records):
            return head + _FIND.pack(key, after, wants_contacts | wants_records << 1)
        case Found(digest, has_more, contacts, records):
            packed = [_CONTACT.pack(c.id, pack_host(c.host), c.port) for c in contacts]
            return b"".join((head, _FOUND.pack(digest, has_more, len(contacts), len(records)), *packed, *records))
        case Store(key, records):
            return b"".join((head, _STORE.pack(key, len(records)), *records))
        case Stored(kept, refused):
            return head + _STORED.pack(kept, refused)
        case Leave():
            return head


def decode(payload: bytes) -> Packet:
    """Read one payload.

    Raises: RemoteProtocolError (reason `malformed`) for anything but a whole message with nothing behind it.
    """
    if len(payload) < _HEADER.size:
        raise _malformed("it is shorter than its header")
    operation, call_id, source, target = _HEADER.unpack_from(payload)
    rest = payload[_HEADER.size :]
    if source == NOBODY:
        raise _malformed("it names no sender")
    try:
        body = _decode_body(operation, rest)
    except struct.error as error:
        raise _malformed("it does not have the length it must have") from error
    return Packet(call_id, source, target, body)


def _decode_body(operation: int, rest: bytes) -> Body:
    match operation:
        case Operation.PING:
            if len(rest) != CHALLENGE_BYTES + _PING_PADDING:
                raise _malformed("a ping of the wrong length")
            return Ping(rest[:CHALLENGE_BYTES])
        case Operation.PONG:
            return Pong(*_PONG.unpack(rest))
        case Operation.FIND:
            key, after, wants = _FIND.unpack(rest)
            if not 1 <= wants <= 3:
                raise _malformed("a find that wants nothing known")
            return Find(key, after, bool(wants & 1), bool(wants & 2))
        case Operation.FOUND:
            return _decode_found(rest)
        case Operation.STORE:
            key, n_records = _STORE.unpack_from(rest)
            records = _slices(rest[_STORE.size :], n_records, RECORD_BYTES)
            if not records:
                raise _malformed("a store of nothing")
            return Store(key, tuple(records))
        case Operation.STORED:
            return Stored(*_STORED.unpack(rest))
        case Operation.LEAVE:
            if rest:
                raise _malformed("a leave with something behind it")
            return Leave()
        case _:
            raise _malformed(f"operation {operation} is unknown here")


def _decode_found(rest: bytes) -> Found:
    digest, has_more, n_contacts, n_records = _FOUND.unpack_from(rest)
    records_at = _FOUND.size + n_contacts * _CONTACT.size
    contacts = []
    for packed in _slices(rest[_FOUND.size : records_at], n_contacts, _CONTACT.size):
        node_id, host, port = _CONTACT.unpack(packed)
        if port == 0 or node_id == NOBODY:
            raise _malformed("a contact that leads nowhere")
        try:
            contacts.append(Contact(node_id, unpack_host(host), port))
        except RemoteProtocolError as error:
            raise _malformed(f"a contact that leads nowhere: {error}") from error
    records = tuple(_slices(rest[records_at:], n_records, RECORD_BYTES))
    if has_more and not records:
        raise _malformed("an empty page with more behind it")
    return Found(digest, has_more, tuple(contacts), records)


def _slices(data: bytes, count: int, size: int) -> list[bytes]:
    if len(data) != count * size:
        raise _malformed(f"{count} items of {size} bytes announced, {len(data)} bytes there")
    return [data[at : at + size] for at in range(0, len(data), size)]


def _malformed(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"malformed message: {what}", reason="malformed")
