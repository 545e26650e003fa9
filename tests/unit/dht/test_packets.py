"""The seven messages, without a socket."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardnet.dht.packets import (
    CHALLENGE_BYTES,
    NOBODY,
    RECORDS_PER_STORE,
    Body,
    Contact,
    Find,
    Found,
    Leave,
    Packet,
    Ping,
    Pong,
    Store,
    Stored,
    decode,
    encode,
    records_per_page,
)
from shardnet.dht.records import RECORD_BYTES
from shardnet.dht.sealing import MAX_PAYLOAD_BYTES
from shardnet.errors import RemoteProtocolError

ONE, TWO, KEY = bytes([1]) * 20, bytes([2]) * 20, bytes([3]) * 20
RECORD = bytes(RECORD_BYTES)
CONTACTS = tuple(Contact(bytes([n + 1]) * 20, f"10.0.0.{n + 1}", 4000 + n) for n in range(16))
BODIES: list[Body] = [
    Ping(bytes(CHALLENGE_BYTES)),
    Pong(b"p" * 33, b"s" * 64),
    Find(KEY, NOBODY, True, False),
    Find(KEY, TWO, False, True),
    Found(b"d" * 8, False, (), ()),
    Found(b"d" * 8, True, CONTACTS, (RECORD,) * records_per_page(16)),
    Found(b"d" * 8, True, (Contact(ONE, "2001:db8::1", 65535),), (RECORD,) * records_per_page(1)),
    Store(KEY, (RECORD,) * RECORDS_PER_STORE),
    Stored(3, 1),
    Leave(),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_a_message_survives_the_journey_and_fits_one_datagram(body: Body) -> None:
    packet = Packet(b"call-id!", ONE, TWO, body)
    payload = encode(packet)
    assert len(payload) <= MAX_PAYLOAD_BYTES
    assert decode(payload) == packet


def test_a_page_holds_several_records_even_beside_all_contacts() -> None:
    assert records_per_page(16) >= 4
    assert records_per_page(0) >= 9


def test_a_ping_multiplies_nothing() -> None:
    ping, pong = (encode(Packet(b"call-id!", ONE, TWO, body)) for body in BODIES[:2])
    assert len(pong) <= len(ping)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_cut_or_lengthened_messages_are_malformed(body: Body) -> None:
    payload = encode(Packet(b"call-id!", ONE, TWO, body))
    for damaged in [payload[:n] for n in range(0, len(payload), 7)] + [payload + b"\0"]:
        with pytest.raises(RemoteProtocolError, match="malformed"):
            decode(damaged)


def test_lies_about_counts_are_malformed() -> None:
    payload = bytearray(encode(Packet(b"call-id!", ONE, TWO, Found(b"d" * 8, False, CONTACTS[:2], (RECORD,)))))
    for at in (-RECORD_BYTES - 2 * 38 - 1, -RECORD_BYTES - 2 * 38 - 2):
        bad = payload.copy()
        bad[at] = 255
        with pytest.raises(RemoteProtocolError, match="malformed"):
            decode(bytes(bad))


def test_contacts_that_lead_nowhere_are_malformed() -> None:
    for contact in (Contact(NOBODY, "10.0.0.1", 1), Contact(ONE, "10.0.0.1", 0), Contact(ONE, "0.0.0.0", 1)):
        with pytest.raises(RemoteProtocolError, match="leads nowhere"):
            decode(encode(Packet(b"call-id!", ONE, TWO, Found(b"d" * 8, False, (contact,), ()))))


def test_mutated_messages_are_read_or_refused_and_nothing_else() -> None:
    chance = random.Random(7)
    for _ in range(3_000):
        payload = bytearray(encode(Packet(b"call-id!", ONE, TWO, chance.choice(BODIES))))
        for _ in range(chance.randint(1, 4)):
            payload[chance.randrange(len(payload))] = chance.randrange(256)
        try:
            packet = decode(bytes(payload))
        except RemoteProtocolError:
            continue
        assert len(encode(packet)) == len(payload)


@settings(max_examples=300)
@given(st.binary(max_size=1400))
def test_any_bytes_are_read_or_refused_and_nothing_else(payload: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode(payload)
