"""One connection between two engines, and the rows that it carries: when to send and to receive is for `row_links`."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence

from shardnet.errors import RemoteProtocolError
from shardnet.hosts import is_ours
from shardnet.inference.engine.steps import ROW_BYTES, TOKEN
from shardnet.messages import MESSAGES
from shardnet.steps import MAX_STAGES, NEXT_STEP, TIMING, NextStep
from shardnet.tcp import acknowledged
from shardnet.wire import MAGIC, PREFIX, VERSION, Buffer

WELCOME = b"\x01"
MAX_UNSENT_BYTES = 4 << 20
"""What may wait for a slow reader before its link is cut."""
MOST_STUCK_LOOKS = 6
"""Looks in a row at which rows were on their way and none had arrived since the last. For an engine that only computes, its kernel acknowledges."""
FIRST_BUFFER_BYTES = 64 << 10
MAX_HEADER_BYTES = NEXT_STEP.size + MAX_STAGES * TIMING.size
KIND = next(kind for kind, message in MESSAGES.compact.items() if message is NextStep)

OnRow = Callable[[memoryview, "RowLink"], None]


class RowLink:
    """One connection. Every method may raise OSError or RemoteProtocolError: then it is over."""

    def __init__(self, link_id: int, tls: ssl.SSLSocket, *, is_dialled: bool) -> None:
        self.link_id = link_id
        self.is_dialled = is_dialled
        self.node_id = ""
        self.is_welcome = False
        self.tls = tls
        self._buffer = memoryview(bytearray(FIRST_BUFFER_BYTES))
        self._start = self._end = 0
        self.unsent = bytearray()
        self._put: list[Buffer] = []
        self._acknowledged = 0
        self._stuck_looks = 0

    def put(self, header: bytes, payload: Sequence[Buffer]) -> None:
        """Have one frame sent with the next `flush`: the header of a `NextStep`, and its tensors."""
        n_bytes = sum(map(len, payload))
        self._put += (PREFIX.pack(MAGIC, VERSION, KIND, len(header), n_bytes), header, *map(bytes, payload))

    def flush(self) -> None:
        """Send what waits, as far as it goes: rows of one batch together, so that they can be one batch again."""
        data: Buffer = b"".join(self._put)
        self._put = []
        if self.unsent:
            self.unsent += data
            data = self.unsent
        try:
            sent = self.tls.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        if sent == len(data):
            self.unsent = bytearray()
            return
        self.unsent = bytearray(data[sent:])
        if len(self.unsent) > MAX_UNSENT_BYTES:
            raise ConnectionAbortedError("it takes nothing")

    def trouble(self) -> str | None:
        """Look whether rows still get through; to be called about once a second. Returns: why not, or None."""
        if not is_ours(self.tls.getsockname()):
            return "this machine's address is another one now"
        seen = acknowledged(self.tls)
        if seen is None:
            return None
        self._stuck_looks = self._stuck_looks + 1 if seen.waits and seen.n_bytes == self._acknowledged else 0
        self._acknowledged = seen.n_bytes
        return "its rows are not acknowledged any more" if self._stuck_looks >= MOST_STUCK_LOOKS else None

    def receive(self, take: OnRow) -> None:
        """Take in all that has arrived, so that rows which came together can run together.

        Args:
            take: gets each row, a `NextStep`'s header and its tensors: a view that is soon overwritten.
        """
        while True:
            try:
                count = self.tls.recv_into(self._buffer[self._end :])
            except ssl.SSLWantReadError:
                return
            if not count:
                raise ConnectionResetError("it closed the link")
            self._end += count
            if self.is_dialled:
                self._greeted()
            else:
                self._cut_rows(take)

    def _greeted(self) -> None:
        if self.is_welcome or self._buffer[: self._end] != WELCOME:
            raise RemoteProtocolError("it sent what nobody asked for")
        self.is_welcome, self._end = True, 0

    def _cut_rows(self, take: OnRow) -> None:
        while self._end - self._start >= PREFIX.size:
            magic, version, kind, header_bytes, payload_bytes = PREFIX.unpack_from(self._buffer, self._start)
            if (magic, version, kind) != (MAGIC, VERSION, KIND) or not self.is_welcome:
                raise RemoteProtocolError("it sent something else than rows")
            if not NEXT_STEP.size <= header_bytes <= MAX_HEADER_BYTES or not TOKEN.size <= payload_bytes <= ROW_BYTES:
                raise RemoteProtocolError(f"a row of {header_bytes} + {payload_bytes} bytes")
            size = PREFIX.size + header_bytes + payload_bytes
            if self._end - self._start < size:
                self._make_room(size)
                return
            take(self._buffer[self._start + PREFIX.size : self._start + size], self)
            self._start += size
        self._make_room(PREFIX.size)

    def _make_room(self, size: int) -> None:
        """Move what is left to the buffer's start, which has room for a frame of `size` bytes then."""
        left = bytes(self._buffer[self._start : self._end])
        if size > len(self._buffer):
            self._buffer = memoryview(bytearray(size))
        self._buffer[: len(left)] = left
        self._start, self._end = 0, len(left)
