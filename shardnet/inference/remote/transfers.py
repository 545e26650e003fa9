"""A thread in which transfers run side by side, so that whoever writes and hashes need not wait for each, and Ctrl-C ends all of them at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx

from shardnet import __version__
from shardnet.errors import SettingsError

CONNECT_S, READ_S = 10.0, 30.0
CLOSE_S = 5.0

T = TypeVar("T")


class Transfers:
    """An event loop of its own, and the HTTP client that lives on it. Its thread does not keep the process alive."""

    def __init__(self) -> None:
        self._running: set[Future[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="transfers", daemon=True)
        self._thread.start()
        self.client = self.run(self._open())

    async def _open(self) -> httpx.AsyncClient:
        # What is asked for is bytes of the file as it is: a server that packs them would number packed bytes.
        headers = {"User-Agent": f"shardnet/{__version__}", "Accept-Encoding": "identity"}
        timeout = httpx.Timeout(READ_S, connect=CONNECT_S)
        try:
            return httpx.AsyncClient(headers=headers, timeout=timeout, follow_redirects=False)
        except ValueError as error:  # what HTTPS_PROXY and its like say is read here
            raise SettingsError(f"the proxy that the environment names cannot be used: {error}") from error

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a transfer. Cancelling what is returned ends it."""
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return running

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Make one transfer, and wait for it."""
        running = self.start(work)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            raise

    def close(self) -> None:
        """End whatever runs; afterwards the thread is gone. May be called again."""
        if self._loop.is_closed():
            return
        for running in tuple(self._running):
            running.cancel()
        try:
            self.start(self._end()).result(CLOSE_S)
        except TimeoutError:
            pass  # on a machine that is busy for so long; what is left ends with the loop
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_S)
            if not self._thread.is_alive():
                self._loop.close()

    async def _end(self) -> None:
        # Only our own tasks are cancelled, each of which ends its own: one of anyio's that is cancelled before it began complains of that.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=CLOSE_S / 2)
        await self.client.aclose()
