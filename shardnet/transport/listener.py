"""Accepting members: TLS first, then Hello, then the daemon's own decision, then Welcome."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Self

from shardnet.errors import Busy, PeerRefused, ShardnetError
from shardnet.ids import short
from shardnet.log import get
from shardnet.messages import Address, Hello, Welcome
from shardnet.swarm.acceptor import Diversion, TlsAcceptor
from shardnet.swarm.addresses import HostPort, open_listening_sockets
from shardnet.swarm.identity import Identity
from shardnet.swarm.tls import check_not_revoked, server_context
from shardnet.transport.connection import Connection
from shardnet.transport.greeting import checked_hello
from shardnet.transport.limits import GREETING_TIMEOUT_S, MAX_LINKS, MAX_PER_PEER
from shardnet.transport.link import Link

HelloHandler = Callable[[Connection, Hello], Welcome]
"""Decides about a peer whose identity is proved. Synchronous. A ShardnetError refuses the peer. What it sends goes out after the Welcome."""

log = get("transport")


class Listener:
    """Accepts until closed; an asynchronous context manager that is open from the start. `address` carries the real port."""

    def __init__(self, identity: Identity, acceptor: TlsAcceptor[Link], on_hello: HelloHandler) -> None:
        self._identity = identity
        self._acceptor = acceptor
        self._on_hello = on_hello
        self._links: set[Link] = set()
        self._per_peer: Counter[str] = Counter()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self._acceptor.address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop accepting and close every accepted connection; when this returns, none is left."""
        await self._acceptor.close()
        await asyncio.gather(*(link.close() for link in tuple(self._links)))

    async def greet(self, link: Link, peer: str) -> None:
        """See one accepted link through its greeting; refuse it with one log line, or hand it to the daemon."""
        self._links.add(link)
        self._per_peer[link.peer_id] += 1
        link.closed.add_done_callback(lambda _: self._gone(link))
        try:
            self._check_admissible(link)
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                frame = await link.first_frame()
            hello = checked_hello(frame.message, link.peer_id)
            check_not_revoked(self._identity, link.peer_id)  # it may have happened meanwhile
            connection = Connection(link, self._identity, hello)
            connection.hold()
            welcome = self._on_hello(connection, hello)
            link.asks = hello.role != "client"  # it may rest for as long as it likes
            link.greeted()
            connection.release(welcome)
        except TimeoutError:
            self._refuse(link, peer, PeerRefused(f"no greeting within {GREETING_TIMEOUT_S:g} s"))
        except ShardnetError as error:
            self._refuse(link, peer, error)
        except asyncio.CancelledError:
            link.abort()
            raise
        except Exception:
            log.exception("hello_handler_failed", peer=peer, node_id=short(link.peer_id))
            link.refuse(ShardnetError("an unexpected error in the listening daemon; its log says more"))

    def _check_admissible(self, link: Link) -> None:
        check_not_revoked(self._identity, link.peer_id)
        if self._per_peer[link.peer_id] > MAX_PER_PEER:
            raise Busy(f"node {short(link.peer_id)} already has {MAX_PER_PEER} connections here", retry_after_s=5)

    def _refuse(self, link: Link, peer: str, error: ShardnetError) -> None:
        was_open = link.error is None
        link.refuse(error)
        if was_open:  # else whatever ended the link was logged there
            self._acceptor.refusals.refused(peer, f"{error} (node {short(link.peer_id)})")
        else:
            log.debug("link_ended_in_greeting", peer=peer, reason=str(error))

    def _gone(self, link: Link) -> None:
        self._acceptor.link_closed()
        self._links.discard(link)
        self._per_peer[link.peer_id] -= 1
        if not self._per_peer[link.peer_id]:
            del self._per_peer[link.peer_id]


async def listen(
    identity: Identity, address: HostPort | Address, on_hello: HelloHandler, *, diversion: Diversion | None = None
) -> Listener:
    """Begin to accept members of the swarm.

    Args:
        address: port 0 lets the system choose.
        diversion: of connections that somebody else takes.

    Raises: SettingsError if the port is taken, UnreachableError if the host is not one of this machine's.
    """
    if isinstance(address, Address):
        address = (address.host, address.port)
    context = await asyncio.to_thread(server_context, identity)
    listener: Listener

    async def greet(link: Link, peer: str) -> None:
        await listener.greet(link, peer)

    listening = await asyncio.to_thread(open_listening_sockets, address)
    acceptor = TlsAcceptor(listening, context, Link, greet, diversion=diversion, max_connections=MAX_LINKS)
    listener = Listener(identity, acceptor, on_hello)
    acceptor.start()
    return listener
