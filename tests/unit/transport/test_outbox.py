"""What waits to be sent is counted, keeps its order, and is the sender's no more."""

from __future__ import annotations

import random

from shardnet.transport.limits import CHUNK_BYTES
from shardnet.transport.outbox import Outbox
from shardnet.wire import Buffer


def test_small_frames_are_one_write_and_large_ones_pieces() -> None:
    writes: list[int] = []
    box = Outbox(lambda data: writes.append(len(data)))
    box.put([b"header", b"payload"])
    box.put([b"header", bytes(CHUNK_BYTES + 1)])
    assert writes == [13, 6, CHUNK_BYTES, 1]
    assert (box.queued_bytes, box.put_bytes) == (0, 20 + CHUNK_BYTES)


def test_a_blocked_outbox_keeps_order_and_its_own_copy() -> None:
    rng = random.Random(1)
    sent, expected, written = bytearray(), bytearray(), 0

    def write(data: Buffer) -> None:
        nonlocal written
        sent.extend(data)
        written += 1
        if written % 2 == 0:
            box.block()

    box = Outbox(write)
    for _ in range(40):
        data = bytearray(rng.randbytes(rng.choice((10, 70_000, 600_000))))
        expected += b"h" + data
        box.put([b"h", data])
        data[:] = bytes(len(data))
        if rng.random() < 0.5:
            box.resume()
        assert len(sent) + box.queued_bytes == box.put_bytes
    while box.queued_bytes:
        box.resume()
    assert sent == expected


def test_clearing_forgets_what_was_not_sent() -> None:
    writes: list[Buffer] = []
    box = Outbox(writes.append)
    box.block()
    box.put([b"never"])
    box.clear()
    box.resume()
    assert not writes
    assert box.queued_bytes == 0
