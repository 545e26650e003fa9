"""Taking in TLS connections from anybody on the network, without letting anybody on the network hurt.

The standard library counts a connection only once its handshake is done. Here it counts from the first packet: a bound on unfinished handshakes
(the oldest gives way, so that a flood of idle connections cannot keep members out), a bound on all connections, five seconds for a handshake,
and at most so many log lines.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from shardnet.hosts import plain_host
from shardnet.log import get
from shardnet.messages import Address
from shardnet.swarm.addresses import bound_address
from shardnet.swarm.tls import HANDSHAKE_TIMEOUT_S, SHUTDOWN_TIMEOUT_S, refusal_reason

MAX_HANDSHAKES = 256
MAX_CONNECTIONS = 1024
LINES_PER_WINDOW = 20
WINDOW_S = 10.0
OUT_OF_DESCRIPTORS_PAUSE_S = 0.1
HELLO_BYTES = 4096
"""More than a ClientHello has; what of it came in the first packet is looked at."""

P = TypeVar("P", bound=asyncio.BaseProtocol)
log = get("transport")


class RefusalLog:
    """One line for each refused peer, until somebody makes a flood of them: then one line with their number."""

    def __init__(self) -> None:
        self._window_ends_s = 0.0
        self._lines = 0
        self._hidden = 0

    def refused(self, peer: str, reason: str) -> None:
        """Log that `peer` was not let in."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._window_ends_s:
            if self._hidden:
                log.warning("more_peers_refused", count=self._hidden, seconds=WINDOW_S)
            self._window_ends_s, self._lines, self._hidden = now_s + WINDOW_S, 0, 0
        if self._lines < LINES_PER_WINDOW:
            self._lines += 1
            log.warning("link_refused", peer=peer, reason=reason)
        else:
            self._hidden += 1


@dataclass(frozen=True, slots=True)
class Diversion:
    """Connections that somebody else shall take: those that ask for a protocol by ALPN, which stands in clear in TLS's first message.

    Attributes:
        protocol: its name.
        take: gets the connection, with nothing read and no handshake made: who it is the taker has to find out.
    """

    protocol: str
    take: Callable[[socket.socket], None]

    def is_asked_for(self, hello: bytes) -> bool:
        """True if a ClientHello names the protocol. That proves nothing: the handshake decides."""
        name = self.protocol.encode()
        return bytes((len(name),)) + name in hello


class TlsAcceptor(Generic[P]):
    """Accepts until closed. Each connection is one task: the handshake, then `serve`."""

    def __init__(
        self,
        listening: Sequence[socket.socket],
        context: ssl.SSLContext,
        make_protocol: Callable[[], P],
        serve: Callable[[P, str], Awaitable[None]],
        *,
        diversion: Diversion | None = None,
        max_handshakes: int = MAX_HANDSHAKES,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Args:
        listening: one socket at least; the first one's address is the acceptor's.
        diversion: of connections that are not ours to serve.
        serve: gets the protocol, connected, and the peer's `host:port`. While it runs, and until the link is closed after, the connection counts.
        """
        self.address: Address = bound_address(listening[0])
        self.refusals = RefusalLog()
        self._sockets = tuple(listening)
        self._context = context
        self._make_protocol = make_protocol
        self._serve = serve
        self._diversion = diversion
        self._max_handshakes = max_handshakes
        self._max_connections = max_connections
        self._handshakes: dict[asyncio.Task[None], None] = {}  # oldest first
        self._serving: set[asyncio.Task[None]] = set()
        self._open_links = 0
        self._accepting: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        self._accepting = [
            loop.create_task(self._accept(one), name=f"accept {bound_address(one)}") for one in self._sockets
        ]

    async def close(self) -> None:
        """Stop accepting and end what is in progress; established links are their owner's to close."""
        tasks = [*self._accepting, *self._handshakes, *self._serving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in self._sockets:
            one.close()

    def link_closed(self) -> None:
        """One established link is gone: its place is free again."""
        self._open_links -= 1

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, where = await loop.sock_accept(listening)
            except OSError as error:
                log.error("accept_failed", address=str(bound_address(listening)), reason=error.strerror or str(error))
                await asyncio.sleep(OUT_OF_DESCRIPTORS_PAUSE_S)
                continue
            peer = str(Address(host=plain_host(where[0]), port=where[1]))
            if self._open_links + len(self._handshakes) >= self._max_connections:
                accepted.close()
                self.refusals.refused(peer, f"all {self._max_connections} connections are taken")
                continue
            if len(self._handshakes) >= self._max_handshakes:
                next(iter(self._handshakes)).cancel("made room")
            task = loop.create_task(self._take(accepted, peer), name=f"handshake {peer}")
            self._handshakes[task] = None
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)
        self._serving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("connection_failed", task=task.get_name(), exc_info=error)

    async def _take(self, accepted: socket.socket, peer: str) -> None:
        loop = asyncio.get_running_loop()
        protocol = self._make_protocol()
        try:
            if self._diversion is not None and self._diversion.is_asked_for(await _first_bytes(accepted)):
                self._diversion.take(accepted)
                return
            # Not what this returns: uvloop gives its own TLS protocol there.
            await loop.connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )
        except asyncio.CancelledError as error:
            accepted.close()
            if error.args:
                self.refusals.refused(peer, "too many unfinished TLS handshakes, this was the oldest")
            raise
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            accepted.close()
            self.refusals.refused(peer, refusal_reason(error))
            return
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._handshakes.pop(task, None)
        self._serving.add(task)
        self._open_links += 1
        await self._serve(protocol, peer)


async def _first_bytes(accepted: socket.socket) -> bytes:
    """Returns: what came first, which stays there to be read. Raises: OSError, TimeoutError."""
    loop, descriptor = asyncio.get_running_loop(), accepted.fileno()
    ready: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, note)
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await ready
    finally:
        loop.remove_reader(descriptor)
    return accepted.recv(HELLO_BYTES, socket.MSG_PEEK)
