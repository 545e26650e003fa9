"""A port of its own that gives `/metrics` and nothing else: for scrapers that have no key, and for nodes, which have no other HTTP port.

Whoever reaches it may read, as with other exporters, so that it is off unless told otherwise. A web page in a browser of this machine, which could
reach loopback by a DNS name of its own, has to name the host: IP addresses and `localhost` are nobody's DNS names.
"""

from __future__ import annotations

import asyncio
import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from shardnet.errors import SettingsError
from shardnet.http_server import HttpServer
from shardnet.log import get
from shardnet.metrics.exposition import Exposition
from shardnet.metrics.settings import MetricsSettings
from shardnet.swarm.addresses import parse_host_port

PATH = "/metrics"
MOST_CONNECTIONS = 32
TEXT = "text/plain; charset=utf-8"

log = get("metrics")


class Door:
    """Open from the start, so that a port that is taken is told at once; serves in `run`, until `stop`."""

    def __init__(self, server: HttpServer, app: ASGIApp) -> None:
        self._server = server
        self._app = app
        self.close = server.close
        self.stop = server.stop
        self.address = server.address

    @classmethod
    async def open(cls, settings: MetricsSettings, exposition: Exposition) -> Door:
        """Raises: SettingsError if the port is taken, or is none; UnreachableError if the host is not one of this machine's."""
        wanted = parse_host_port(settings.listen, what="metrics.listen")
        try:
            server = await asyncio.to_thread(HttpServer.listen, wanted)
        except SettingsError as error:
            raise SettingsError(f"metrics.listen: {error}") from error
        log.info("metrics_listening", address=str(server.address))
        return cls(server, metrics_app(exposition, (wanted[0], *settings.allowed_hosts)))

    async def run(self) -> None:
        """Serve; returns after `stop`."""
        await self._server.run(self._app, most_connections=MOST_CONNECTIONS)


def metrics_app(exposition: Exposition, hosts: tuple[str, ...]) -> ASGIApp:
    """Returns: the ASGI application. Args: hosts: Host names that are answered besides IP addresses and localhost; `*`: all."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        told: dict[str, str] = {"Content-Type": TEXT}
        if not is_answered(headers.get("host", ""), hosts):
            status, body = 403, b"this Host is not answered here: add it to metrics.allowed_hosts\n"
        elif scope["path"].rstrip("/") not in (PATH, ""):
            status, body = 404, b"there is nothing here but /metrics\n"
        elif scope["method"] not in ("GET", "HEAD"):
            status, body, told = 405, b"/metrics takes GET\n", told | {"Allow": "GET, HEAD"}
        else:
            status = 200
            body, told = await exposition.answer(headers.get("accept", ""), headers.get("accept-encoding", ""))
        sent = [(name.lower().encode(), value.encode()) for name, value in told.items()]
        sent.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app


def is_answered(host: str, names: tuple[str, ...]) -> bool:
    """True for a Host header, port or not, that is an IP address, localhost, or one of `names`."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if "*" in names or name.lower() in ("localhost", *names):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
