"""Asking the coordinator as a member that runs nothing. Dials when the first question comes, and again when the link was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from shardnet.dht.directory import Directory
from shardnet.errors import RemoteProtocolError, UnreachableError
from shardnet.ids import NodeId, new_id
from shardnet.messages import PROTOCOL_VERSION, Address, AnyMessage, Hello, Welcome
from shardnet.node.links.meeting import find_coordinators
from shardnet.node.links.questions import Question, Questions
from shardnet.swarm.addresses import is_wildcard, read_coordinator_addresses
from shardnet.swarm.identity import Identity
from shardnet.swarm.membership import remember_revoked
from shardnet.transport import Connection, dial
from shardnet.wire import Frame


class CoordinatorVisit:
    """A client's link to the coordinator.

    Args:
        given: where it is; None: where one on this machine wrote it down, or the DHT knows one.
    """

    def __init__(self, identity: Identity, given: Address | None) -> None:
        self._identity = identity
        self._given = given
        self._run_id = new_id()
        self._questions = Questions()
        self._connection: Connection | None = None
        self._dialling = asyncio.Lock()
        self.host: str | None = given.host if given is not None else None
        """Where the coordinator is, as far as known."""

    async def meet(self, directory: Directory | None) -> None:
        """Dial, and let the DHT begin where the coordinator says. Raises: UnreachableError, PeerRefused."""
        async with self._dialling:
            if self._connection is not None:
                return
            address = await self._find(directory)
            hello = Hello(
                protocol=PROTOCOL_VERSION,
                node_id=self._identity.node_id,
                name=self._identity.name,
                role="client",
                run_id=self._run_id,
            )
            connection = await dial(self._identity, address, hello)
            self._connection, self.host = connection, address.host

            def on_close(error: Exception) -> None:
                self._connection = None
                self._questions.lost(connection, UnreachableError(f"the coordinator at {address} is gone: {error}"))

            connection.set_handler(lambda frame: self._take(connection, frame), on_close)
            welcome = connection.peer
            if isinstance(welcome, Welcome) and (welcome.revoked or self._identity.revoked):
                await self._learn_revoked(welcome.revoked)
            if directory is not None and isinstance(welcome, Welcome) and welcome.dht is not None:
                host = address.host if is_wildcard(welcome.dht.host) else welcome.dht.host
                await directory.add_peers([str(Address(host=host, port=welcome.dht.port))])

    async def ask(self, question: Question, timeout_s: float) -> Frame[AnyMessage]:
        """Returns: the answer. Raises: the coordinator's error; UnreachableError without one; DeadlineExceeded."""
        if self._connection is None:
            raise UnreachableError("there is no coordinator to ask")
        return await self._questions.ask(self._connection, question, timeout_s=timeout_s)

    async def close(self) -> None:
        """End the link."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _learn_revoked(self, node_ids: Iterable[NodeId]) -> None:
        self._identity.set_revoked(node_ids)
        await asyncio.to_thread(remember_revoked, self._identity, frozenset(node_ids))

    async def _find(self, directory: Directory | None) -> Address:
        if self._given is not None:
            return self._given
        here = (await asyncio.to_thread(read_coordinator_addresses, self._identity.home)).nodes
        if here is not None:
            return here
        found = await find_coordinators(directory) if directory is not None else []
        if not found:
            raise UnreachableError(
                "no coordinator is known here: name one with --coordinator, or a member's DHT with --bootstrap"
            )
        return found[0]

    def _take(self, connection: Connection, frame: Frame[AnyMessage]) -> None:
        if not self._questions.take(connection, frame):
            raise RemoteProtocolError(f"a client does not take {frame.message.type}")
