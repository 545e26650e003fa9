"""`shardnet.inference.engine.row_packets`: rows of one batch reach the daemon in one packet."""

from __future__ import annotations

import pytest

from shardnet.errors import RemoteProtocolError
from shardnet.inference.engine.row_packets import MAX_JOINED_BYTES, join, split
from shardnet.inference.engine.steps import RowDone, pack_row_done


def packets(*records: tuple[bytes, ...]) -> list[memoryview]:
    return [memoryview(b"".join(parts)) for parts in join(records)]


def test_rows_of_one_batch_are_one_packet() -> None:
    heads = [pack_row_done(7, 1, position, 3, 11, 1.0, 1.0, 2.0, 3.0, 4, True, 0) for position in range(4)]
    (packet,) = packets(*((head, b"", b"") for head in heads))
    assert [RowDone.unpack(record).position for record in split(packet)] == [0, 1, 2, 3]


def test_timings_and_hidden_states_stay_with_their_row() -> None:
    head = pack_row_done(7, 1, 5, 3, 11, 1.0, 1.0, 2.0, 3.0, 4, False, 2)
    (packet,) = packets((head, b"t" * 16, b"h" * 8), (head, b"", b"H" * 8))
    first, second = [RowDone.unpack(record) for record in split(packet)]
    assert (first.timings, bytes(first.hidden)) == (b"t" * 16, b"h" * 8)
    assert (second.timings, bytes(second.hidden)) == (b"", b"H" * 8)


def test_nothing_is_no_packet() -> None:
    assert packets() == []


def test_a_packet_is_not_joined_beyond_its_bound_and_a_larger_record_goes_alone() -> None:
    large, small = (b"x" * (MAX_JOINED_BYTES + 1),), (b"y" * 10,)
    assert [[len(one) for one in split(packet)] for packet in packets(small, large, small, small)] == [
        [10],
        [MAX_JOINED_BYTES + 1],
        [10, 10],
    ]


@pytest.mark.parametrize("packet", [b"\x01\x00", b"\x05\x00\x00\x00abc"])
def test_a_packet_that_ends_within_a_record_is_refused(packet: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        list(split(memoryview(packet)))
