"""How libtorrent's threads wake the event loop: by a pipe that they write to."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable


class WakingPipe:
    """Open until `close`.

    Args:
        on_wake: called on the running event loop, once for any number of bytes.
    """

    def __init__(self, on_wake: Callable[[], None]) -> None:
        self._on_wake = on_wake
        self._loop = asyncio.get_running_loop()
        self._read_end, self.write_end = os.pipe()
        for end in (self._read_end, self.write_end):
            os.set_blocking(end, False)
        self._loop.add_reader(self._read_end, self._wake)

    def close(self) -> None:
        """Nobody may write any more."""
        self._loop.remove_reader(self._read_end)
        for end in (self._read_end, self.write_end):
            os.close(end)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._read_end, 4096)) == 4096:
                pass
        self._on_wake()
