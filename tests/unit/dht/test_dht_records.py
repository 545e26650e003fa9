"""Signed leases, without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardnet.dht import records
from shardnet.dht.records import (
    RECORD_BYTES,
    Kind,
    Record,
    RecordVerifier,
    coordinator_key,
    manifest_key,
    provider_key,
    sign_record,
)
from shardnet.errors import LocalProtocolError, RemoteProtocolError
from tests.support.dht_world import MODEL, OTHER_MODEL, KeySigner

NOW = 1_800_000_000.0
KEY = provider_key(MODEL, 0)
SIGNER = KeySigner()


def verifier(*, allow_loopback: bool = True) -> RecordVerifier:
    return RecordVerifier(max_ttl_s=600, max_skew_s=30, allow_loopback=allow_loopback)


def record(signer: KeySigner = SIGNER, key: bytes = KEY, **changes: object) -> Record:
    values: dict[str, object] = {
        "address": ("10.0.0.7", 4100),
        "sequence": 5,
        "expires_at": NOW + 120,
        "torrent_port": 6881,
        "memory_free_bytes": 7 << 30,
    }
    return sign_record(signer, key, Kind.PROVIDER, **(values | changes))  # type: ignore[arg-type]


def reason(key: bytes, raw: bytes, now: float = NOW, **limits: bool) -> object:
    with pytest.raises(RemoteProtocolError) as caught:
        verifier(**limits).verify(key, raw, now)
    return caught.value.facts["reason"]


def test_a_record_says_what_was_signed_and_who_signed_it() -> None:
    made = record()
    assert len(made.raw) == RECORD_BYTES <= 200
    read = verifier().verify(KEY, made.raw, NOW)
    assert read == made
    assert read.node_id == SIGNER.node_id
    assert (read.host, read.port, read.torrent_port, read.memory_free_bytes) == ("10.0.0.7", 4100, 6881, 7 << 30)
    assert (read.sequence, read.expires_at, read.is_withdrawn) == (5, NOW + 120, False)


def test_ipv6_addresses_travel_too() -> None:
    assert verifier().verify(KEY, record(address=("2001:db8::7", 1)).raw, NOW).host == "2001:db8::7"


def test_every_flipped_bit_is_noticed() -> None:
    raw = record().raw
    for at in range(len(raw)):
        bad = bytearray(raw)
        bad[at] ^= 1 << (at % 8)
        with pytest.raises(RemoteProtocolError):
            verifier().verify(KEY, bytes(bad), NOW)


def test_nobody_speaks_for_another_node() -> None:
    """A forger puts the victim's public key into the body and signs with its own."""
    victim, forger = KeySigner(), KeySigner()

    class Liar(KeySigner):
        @property
        def public_key_bytes(self) -> bytes:
            return victim.public_key_bytes

        def sign(self, data: bytes) -> bytes:
            return forger.sign(data)

    forged = record(Liar())
    assert forged.node_id == victim.node_id
    assert reason(KEY, forged.raw) == "signature"


def test_a_record_counts_only_under_the_key_it_was_signed_for() -> None:
    for other in (provider_key(MODEL, 1), provider_key(OTHER_MODEL, 0), manifest_key(MODEL), coordinator_key()):
        assert reason(other, record().raw) == "signature"


def test_a_remembered_record_is_not_believed_under_another_key() -> None:
    checker = verifier()
    checker.verify(KEY, record().raw, NOW)
    with pytest.raises(RemoteProtocolError):
        checker.verify(provider_key(MODEL, 1), record().raw, NOW)


def test_an_expired_record_is_refused_to_the_second() -> None:
    raw = record(expires_at=NOW + 10).raw
    checker = verifier()
    checker.verify(KEY, raw, NOW + 9.9)
    with pytest.raises(RemoteProtocolError) as caught:
        checker.verify(KEY, raw, NOW + 10)
    assert caught.value.facts["reason"] == "expired"


def test_a_promise_of_a_year_is_refused() -> None:
    assert reason(KEY, record(expires_at=NOW + 365 * 86_400).raw) == "ttl"
    assert reason(KEY, record(expires_at=NOW + 632).raw) == "ttl"
    verifier().verify(KEY, record(expires_at=NOW + 630).raw, NOW)


@pytest.mark.parametrize("length", [0, 1, RECORD_BYTES - 1, RECORD_BYTES + 1, 4096])
def test_a_record_of_another_length_is_refused(length: int) -> None:
    assert reason(KEY, (record().raw * 30)[:length]) == "size"


def test_loopback_is_a_peer_only_to_those_who_live_there() -> None:
    raw = record(address=("127.0.0.1", 4100)).raw
    verifier(allow_loopback=True).verify(KEY, raw, NOW)
    assert reason(KEY, raw, allow_loopback=False) == "address"


MAPPED = "00" * 10 + "ffff"


@pytest.mark.parametrize(
    "packed", [MAPPED + "00000000", MAPPED + "e0000001", MAPPED + "ffffffff", "00" * 16, "ff02" + "00" * 13 + "01"]
)
def test_an_address_that_nobody_can_have_is_refused(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "pack_host", lambda _host: bytes.fromhex(packed))
    monkeypatch.setattr(records, "_parse", lambda raw: raw)
    raw = record()
    monkeypatch.undo()
    assert reason(KEY, raw) == "address"  # type: ignore[arg-type]


def test_unusable_values_are_our_own_mistake() -> None:
    for bad in (
        {"address": ("example.org", 1)},
        {"address": ("10.0.0.1", 0)},
        {"address": ("10.0.0.1", 70_000)},
        {"torrent_port": -1},
    ):
        with pytest.raises(LocalProtocolError, match="cannot announce"):
            record(**bad)


def test_keys_differ_by_kind_model_and_shard() -> None:
    keys = {provider_key(MODEL, n) for n in range(100)} | {
        provider_key(OTHER_MODEL, 0),
        manifest_key(MODEL),
        coordinator_key(),
    }
    assert len(keys) == 103
    assert {len(key) for key in keys} == {20}


def test_a_revoked_members_record_is_refused_also_when_it_was_verified_before() -> None:
    revoked: set[str] = set()
    checker = RecordVerifier(max_ttl_s=600, max_skew_s=30, allow_loopback=True, revoked=lambda: frozenset(revoked))
    checker.verify(KEY, record().raw, NOW)
    revoked.add(SIGNER.node_id)
    with pytest.raises(RemoteProtocolError) as caught:
        checker.verify(KEY, record().raw, NOW)
    assert caught.value.facts["reason"] == "revoked"
    assert checker.verify(KEY, record(KeySigner()).raw, NOW)


def test_what_was_verified_once_is_remembered_within_bounds() -> None:
    checker = RecordVerifier(max_ttl_s=600, max_skew_s=30, allow_loopback=True, remembered=3)
    made = [record(sequence=n) for n in range(6)]
    for each in made * 2:
        assert checker.verify(KEY, each.raw, NOW) == each
    assert len(checker._verified) == 3


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.binary(min_size=RECORD_BYTES, max_size=RECORD_BYTES))
def test_any_bytes_are_refused_without_another_exception(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        verifier().verify(KEY, raw, NOW)
