"""The API's HTTP server: so many connections, refused in the API's own shape."""

from __future__ import annotations

from starlette.types import ASGIApp

from shardnet import http_server
from shardnet.coordinator.api.refusing import RefusingProtocol

MAX_CONNECTIONS = 1024


class HttpServer(http_server.HttpServer):
    """Serves an ASGI app until `stop`. The sockets are open from the start, so that the address is known."""

    async def serve(self, app: ASGIApp) -> None:
        """Serve; returns after `stop`, when every connection is closed."""
        await self.run(app, protocol=RefusingProtocol, most_connections=MAX_CONNECTIONS)
