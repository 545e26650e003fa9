"""Sealed datagrams, without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardnet.dht.sealing import MAX_DATAGRAM_BYTES, MAX_PAYLOAD_BYTES, OVERHEAD_BYTES, Sealer
from shardnet.errors import LocalProtocolError, RemoteProtocolError
from tests.support.dht_world import SWARM_KEY, FakeClock

OTHER_KEY = bytes(32)


def reason(sealer: Sealer, datagram: bytes) -> object:
    with pytest.raises(RemoteProtocolError) as caught:
        sealer.open(datagram)
    return caught.value.facts["reason"]


def test_what_one_member_seals_another_opens() -> None:
    clock = FakeClock()
    one, two = Sealer([SWARM_KEY], clock=clock), Sealer([SWARM_KEY], clock=clock)
    datagram = one.seal(b"hello")
    assert b"hello" not in datagram
    assert len(datagram) == 5 + OVERHEAD_BYTES
    assert two.open(datagram) == b"hello"


def test_another_swarms_datagram_is_unsealed_to_us() -> None:
    clock = FakeClock()
    assert reason(Sealer([SWARM_KEY], clock=clock), Sealer([OTHER_KEY], clock=clock).seal(b"x")) == "unsealed"


def test_every_flipped_bit_is_noticed() -> None:
    sealer = Sealer([SWARM_KEY], clock=FakeClock())
    datagram = sealer.seal(b"some payload")
    for at in range(len(datagram)):
        bad = bytearray(datagram)
        bad[at] ^= 1 << (at % 8)
        assert reason(sealer, bytes(bad)) == "unsealed"
    assert sealer.open(datagram) == b"some payload"


def test_a_datagram_counts_once() -> None:
    sealer = Sealer([SWARM_KEY], clock=FakeClock())
    datagram = sealer.seal(b"x")
    sealer.open(datagram)
    assert reason(sealer, datagram) == "replayed"


@pytest.mark.parametrize("shift_s", [-3600, -31, 31, 3600])
def test_a_clock_too_far_off_is_named(shift_s: float) -> None:
    clock = FakeClock()
    theirs = FakeClock(clock.now + shift_s)
    datagram = Sealer([SWARM_KEY], clock=theirs).seal(b"x")
    with pytest.raises(RemoteProtocolError, match="set both clocks right") as caught:
        Sealer([SWARM_KEY], clock=clock).open(datagram)
    assert caught.value.facts["reason"] == "skewed"


@pytest.mark.parametrize("shift_s", [-29, 29])
def test_a_clock_a_little_off_is_fine(shift_s: float) -> None:
    clock = FakeClock()
    datagram = Sealer([SWARM_KEY], clock=FakeClock(clock.now + shift_s)).seal(b"x")
    assert Sealer([SWARM_KEY], clock=clock).open(datagram) == b"x"


def test_no_moment_opens_a_datagram_twice() -> None:
    """Stamped 29 s ahead, a datagram stays good for 59 s: it must be remembered as long."""
    clock = FakeClock()
    datagram = Sealer([SWARM_KEY], clock=FakeClock(clock.now + 29)).seal(b"x")
    sealer = Sealer([SWARM_KEY], clock=clock)
    sealer.open(datagram)
    for _ in range(70):
        clock.now += 1
        sealer.open(Sealer([SWARM_KEY], clock=clock).seal(b"other traffic"))
        assert reason(sealer, datagram) in {"replayed", "skewed"}


def test_the_memory_of_nonces_is_bounded() -> None:
    clock = FakeClock()
    sealer = Sealer([SWARM_KEY], clock=clock, remembered=10)
    for _ in range(50):
        sealer.open(sealer.seal(b"x"))
    assert len(sealer._seen) <= 10
    clock.now += 100
    sealer.open(sealer.seal(b"x"))
    assert len(sealer._seen) == 1


def test_two_keys_are_live_while_a_swarm_changes_them() -> None:
    clock = FakeClock()
    old, both, new = (Sealer(keys, clock=clock) for keys in ([OTHER_KEY], [SWARM_KEY, OTHER_KEY], [SWARM_KEY]))
    assert both.open(old.seal(b"x")) == b"x"
    assert new.open(both.seal(b"y")) == b"y"
    assert reason(new, old.seal(b"z")) == "unsealed"


def test_what_does_not_fit_is_refused_on_both_sides() -> None:
    sealer = Sealer([SWARM_KEY], clock=FakeClock())
    assert len(sealer.seal(bytes(MAX_PAYLOAD_BYTES))) == MAX_DATAGRAM_BYTES
    with pytest.raises(LocalProtocolError):
        sealer.seal(bytes(MAX_PAYLOAD_BYTES + 1))
    assert reason(sealer, bytes(MAX_DATAGRAM_BYTES + 1)) == "oversized"


@pytest.mark.parametrize("keys", [[], [b"short"], [SWARM_KEY, b""]])
def test_a_key_of_another_length_is_refused(keys: list[bytes]) -> None:
    with pytest.raises(LocalProtocolError, match="32 bytes"):
        Sealer(keys, clock=FakeClock())


@settings(max_examples=300)
@given(st.binary(max_size=1500))
def test_any_bytes_are_refused_without_another_exception(datagram: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Sealer([SWARM_KEY], clock=FakeClock()).open(datagram)
