"""When a slow peer is too slow: times and counters in, a verdict out."""

from __future__ import annotations

from shardnet.transport.limits import HEADER_TIMEOUT_S, MIN_PAYLOAD_BYTES_PER_S, STALLED_TIMEOUT_S
from shardnet.transport.pace import ReceivingPace, SendingPace


def test_a_header_has_five_seconds_however_its_bytes_drip_in() -> None:
    pace = ReceivingPace()
    assert [pace.too_slow(100.0 + second, frame=7, payload_bytes=None) for second in range(5)] == [None] * 5
    assert "header" in str(pace.too_slow(100.0 + HEADER_TIMEOUT_S, frame=7, payload_bytes=None))


def test_a_new_frame_starts_a_new_clock() -> None:
    pace = ReceivingPace()
    for second in range(60):
        assert pace.too_slow(second, frame=second // 3, payload_bytes=None) is None


def test_a_payload_may_be_slow_but_not_below_64_kib_a_second() -> None:
    enough, dripping = ReceivingPace(), ReceivingPace()
    for second in range(60):
        assert enough.too_slow(second, frame=0, payload_bytes=second * MIN_PAYLOAD_BYTES_PER_S) is None
    verdicts = [dripping.too_slow(second, frame=0, payload_bytes=second) for second in range(8)]
    assert verdicts[:6] == [None] * 6
    assert "64 KiB/s" in str(verdicts[6])


def test_a_peer_that_takes_something_now_and_then_is_kept() -> None:
    pace = SendingPace()
    for second in range(120):
        assert pace.stalled(second, taken_bytes=second // 9, queued_bytes=1000) is None


def test_a_peer_that_takes_nothing_for_ten_seconds_is_cut() -> None:
    pace = SendingPace()
    verdicts = [pace.stalled(second, taken_bytes=5, queued_bytes=1000) for second in range(12)]
    assert verdicts[: int(STALLED_TIMEOUT_S)] == [None] * 10
    assert "took nothing for 10 s" in str(verdicts[10])


def test_an_empty_queue_is_never_stalled() -> None:
    pace = SendingPace()
    assert all(pace.stalled(second, taken_bytes=5, queued_bytes=0) is None for second in range(60))
