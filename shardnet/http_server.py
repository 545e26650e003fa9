"""uvicorn inside a daemon's own event loop: our socket, our signals, our logs. Refuses to know what is served."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Literal, Self

import uvicorn
from starlette.types import ASGIApp

from shardnet.messages import Address
from shardnet.swarm.addresses import HostPort, bound_address, open_listening_sockets
from shardnet.tcp import Patience, tune

GRACEFUL_S = 2
PATIENCE = Patience(idle_s=15, interval_s=5, questions=3, unacknowledged_s=120)
"""A client that is gone without a word does not keep its answer's place; one that only does not read for a while does."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the daemon's business."""
        yield


class HttpServer:
    """Serves an ASGI app until `stop`. The sockets are open from the start, so that the address is known."""

    def __init__(self, listening: list[socket.socket]) -> None:
        self._sockets = listening
        self._server: _Server | None = None
        self._stopped = False

    @classmethod
    def listen(cls, address: HostPort) -> Self:
        """Raises: SettingsError if the port is taken; UnreachableError if the host is not one of this machine's."""
        listening = open_listening_sockets(address)
        for one in listening:
            tune(one, PATIENCE)  # what is accepted takes it over
        return cls(listening)

    @property
    def address(self) -> Address:
        """Returns: where it listens."""
        return bound_address(self._sockets[0])

    async def run(
        self,
        app: ASGIApp,
        *,
        protocol: type[asyncio.Protocol] | Literal["h11"] = "h11",
        most_connections: int,
    ) -> None:
        """Serve; returns after `stop`, when every connection is closed."""
        config = uvicorn.Config(
            app,
            http=protocol,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=most_connections,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=GRACEFUL_S,
        )
        self._server = _Server(config)
        self._server.should_exit = self._stopped
        try:
            await self._server.serve(sockets=self._sockets)
        finally:
            self.close()

    def stop(self) -> None:
        """Ask it to end."""
        self._stopped = True
        if self._server is not None:
            self._server.should_exit = True

    def close(self) -> None:
        """Close the sockets."""
        for one in self._sockets:
            one.close()
