"""When a slow peer is too slow: times and counters in, a verdict out."""

from __future__ import annotations

from shardnet.transport.limits import (
    BULK_BYTES,
    HEADER_TIMEOUT_S,
    LOST_AFTER_TICKS,
    MIN_PAYLOAD_BYTES_PER_S,
    STALLED_TIMEOUT_S,
)
from shardnet.transport.pace import ReceivingPace, SendingPace, Silence


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


def test_a_silent_peer_is_asked_every_other_second_and_given_up_after_six() -> None:
    silence = Silence()
    silence.look(received_bytes=100, taken_bytes=0, unacknowledged_bytes=0)
    asked, verdicts = [], []
    for _ in range(LOST_AFTER_TICKS):
        silence.look(received_bytes=100, taken_bytes=0, unacknowledged_bytes=0)
        asked.append(silence.asks)
        verdicts.append(silence.verdict)
    assert asked == [False, True] * 3
    assert verdicts[:-1] == [None] * 5
    assert "nothing came back for 6 s" in str(verdicts[-1])


def test_one_byte_from_a_peer_is_a_sign_of_life() -> None:
    silence = Silence()
    for second in range(60):
        silence.look(received_bytes=second // 5, taken_bytes=0, unacknowledged_bytes=0)
        assert silence.verdict is None


def test_a_peer_that_acknowledges_a_large_tensor_bit_by_bit_is_alive_though_it_says_nothing() -> None:
    silence = Silence()
    silence.look(received_bytes=0, taken_bytes=0, unacknowledged_bytes=0)
    left = 100 * BULK_BYTES
    silence.look(received_bytes=0, taken_bytes=left, unacknowledged_bytes=left)
    for _ in range(60):
        left -= BULK_BYTES
        silence.look(received_bytes=0, taken_bytes=100 * BULK_BYTES, unacknowledged_bytes=left)
        assert silence.ticks == 0


def test_what_is_only_put_in_and_never_acknowledged_is_no_sign_of_life() -> None:
    silence = Silence()
    for second in range(LOST_AFTER_TICKS + 2):
        waiting = second * 2 * BULK_BYTES
        silence.look(received_bytes=0, taken_bytes=waiting, unacknowledged_bytes=waiting)
    assert silence.verdict is not None


def test_a_kernel_that_acknowledges_our_questions_for_a_hung_process_is_no_sign_of_life() -> None:
    silence = Silence()
    for second in range(LOST_AFTER_TICKS + 1):
        silence.look(received_bytes=0, taken_bytes=60 * second, unacknowledged_bytes=0)
    assert silence.verdict is not None
