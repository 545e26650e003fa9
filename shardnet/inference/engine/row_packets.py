"""Packets in which the engine tells its daemon what became of rows: those of one batch travel together, since each packet is a wake-up.

A packet is one record after the other, each a u32 length and so many bytes: a `RowDone` as `steps.pack_row_done` and what follows it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from shardnet.errors import RemoteProtocolError
from shardnet.wire import Buffer

MAX_JOINED_BYTES = 64 << 10
"""A packet is not made larger than this by joining; a single record may be."""

_LENGTH = struct.Struct("<I")


def join(records: Sequence[Sequence[Buffer]]) -> Iterator[list[Buffer]]:
    """Yields: packets, each as the buffers to be sent; as few as hold these records, in order.

    Args:
        records: each as its parts.
    """
    packet: list[Buffer] = []
    packet_bytes = 0
    for parts in records:
        size = sum(map(len, parts))
        if packet and packet_bytes + _LENGTH.size + size > MAX_JOINED_BYTES:
            yield packet
            packet, packet_bytes = [], 0
        packet += (_LENGTH.pack(size), *parts)
        packet_bytes += _LENGTH.size + size
    if packet:
        yield packet


def split(packet: memoryview) -> Iterator[memoryview]:
    """Yields: the records of a packet, views into it. Raises: RemoteProtocolError if they do not fill it."""
    start = 0
    while start < len(packet):
        if len(packet) - start < _LENGTH.size:
            raise RemoteProtocolError("a packet ends within a record's length")
        end = start + _LENGTH.size + _LENGTH.unpack_from(packet, start)[0]
        if end > len(packet):
            raise RemoteProtocolError("a packet ends within a record")
        yield packet[start + _LENGTH.size : end]
        start = end
