"""An event loop on a thread of its own, for callers that block, whether or not their own thread has a loop that runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from shardnet.lifecycle import new_loop

T = TypeVar("T")
END_S = 5.0
"""What an interrupted caller waits for its work to end."""


class LoopThread:
    """Starts at once. The thread ends with `close`, or with the program."""

    def __init__(self, name: str) -> None:
        self._loop = new_loop()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._loop.set_default_executor(self._executor)
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Returns: what `work` gives on the loop. An interrupted caller, by Ctrl-C say, cancels it and waits for its end."""
        ended = threading.Event()

        async def watched() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(watched(), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(END_S)
            raise

    def iterate(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """Yield what `items` yields on the loop. It is closed with this generator."""
        try:
            while (found := self.run(_next(items))) is not None:
                yield found[0]
        finally:
            self.run(items.aclose())

    def close(self) -> None:
        """End the thread. Nothing may run on it any more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._executor.shutdown()
        self._loop.close()


async def _next(items: AsyncGenerator[T, None]) -> tuple[T] | None:
    async for item in items:
        return (item,)
    return None
