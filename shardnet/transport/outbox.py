"""What waits to be sent on one link, where it can be counted.

TLS hides what waits in the TCP transport below it: tens of megabytes can sit there while asyncio reports none. So the link hands TLS only
what is taken at once, and the rest waits here. Knows no sockets: it is given a `write`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from shardnet.transport.limits import CHUNK_BYTES, JOIN_BYTES
from shardnet.wire import Buffer


class Outbox:
    """`block` when the transport says stop, `resume` when it says go on."""

    def __init__(self, write: Callable[[Buffer], None]) -> None:
        self._write = write
        self._queue: deque[bytes | memoryview] = deque()
        self.blocked = False
        self.queued_bytes = 0
        self.put_bytes = 0
        """All that was ever put in."""

    def put(self, buffers: Sequence[Buffer]) -> None:
        """Write what the transport takes, keep a copy of the rest: the caller may overwrite its buffers when this returns."""
        if sum(map(len, buffers)) <= JOIN_BYTES:
            joined = b"".join(buffers)
            if not self.blocked and not self._queue:
                self.put_bytes += len(joined)
                self._write(joined)
                return
            buffers = [joined]
        for buffer in buffers:
            for start in range(0, len(buffer), CHUNK_BYTES):
                piece = memoryview(buffer)[start : start + CHUNK_BYTES]
                self.put_bytes += len(piece)
                if self.blocked or self._queue:
                    self._queue.append(bytes(piece))
                    self.queued_bytes += len(piece)
                else:
                    self._write(piece)

    def block(self) -> None:
        """The transport wants no more for now."""
        self.blocked = True

    def resume(self) -> None:
        """The transport takes more: write until it blocks again, which it may do in the middle of a write."""
        self.blocked = False
        while self._queue and not self.blocked:
            piece = self._queue.popleft()
            self.queued_bytes -= len(piece)
            self._write(piece)

    def clear(self) -> None:
        """Forget what was not sent."""
        self._queue.clear()
        self.queued_bytes = 0
