"""Links to other nodes: dialled once, kept, and used in whichever direction they were made.

What is sent to a node that is being dialled waits in order. A node that cannot be dialled is left alone for a while: meanwhile its tasks go
through the coordinator. Knows nothing of what the messages mean.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shardnet.errors import DeadlineExceeded, PeerLost, ShardnetError, UnreachableError
from shardnet.ids import NodeId, new_id, short
from shardnet.lifecycle import Spawn
from shardnet.log import get
from shardnet.messages import Address, AnyMessage, Hello, Ping
from shardnet.node.links.questions import Question, Questions
from shardnet.shards import Dtype, TensorSpec
from shardnet.swarm.identity import Identity
from shardnet.transport import Connection, dial
from shardnet.wire import Buffer, Frame

log = get("node")

OnPeerFrame = Callable[[Connection, Frame[AnyMessage]], None]
OnUnreachable = Callable[[ShardnetError], None]

SMALL_PINGS = 5
PADDING_BYTES = 1 << 20
MAX_WAITING = 256
"""Messages that may wait for one dial; more fail at once, and go through the coordinator."""


@dataclass(slots=True)
class _Waiting:
    message: AnyMessage
    payloads: Sequence[Buffer]
    on_unreachable: OnUnreachable


@dataclass(slots=True)
class _Peer:
    """One other node. Either a connection, or a dial with its waiting messages, or neither.

    `told`: where the coordinator said last that it is dialled.
    """

    connection: Connection | None = None
    waiting: list[_Waiting] = field(default_factory=list)
    dialling: asyncio.Future[Connection] | None = None
    alone_until_s: float = 0.0
    last_error: ShardnetError | None = None
    told: Address | None = None
    is_adopted: bool = False


class PeerLinks:
    """All links to other nodes.

    Args:
        hello: what we say when we dial.
        on_frame: gets every frame but the answers to our own pings.
        on_lost: called with a node's id when its link is gone.
    """

    def __init__(
        self,
        identity: Identity,
        hello: Callable[[], Hello],
        on_frame: OnPeerFrame,
        on_lost: Callable[[NodeId, ShardnetError], None],
        spawn: Spawn,
        *,
        dial_timeout_s: float,
        redial_after_s: float,
    ) -> None:
        self._identity = identity
        self._hello = hello
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._spawn = spawn
        self._dial_timeout_s = dial_timeout_s
        self._redial_after_s = redial_after_s
        self._peers: dict[NodeId, _Peer] = {}
        self._questions = Questions()

    @property
    def n_open(self) -> int:
        """Returns: nodes that are linked with this one now."""
        return sum(peer.connection is not None for peer in self._peers.values())

    def adopt(self, connection: Connection) -> None:
        """Handle a link that the other node dialled; send over it too, if there is no other. It dials us once: over an older link of its it does not
        hear us any more."""
        peer = self._peers.setdefault(connection.peer_id, _Peer())
        if peer.connection is not None and peer.is_adopted:
            before, peer.connection = peer.connection, None
            before.abort()
            self._lost(before, PeerLost(f"node {short(connection.peer_id)} connected anew"))
        if peer.connection is None and peer.dialling is None:
            peer.connection, peer.is_adopted = connection, True
        connection.set_handler(
            lambda frame: self._take(connection, frame), lambda error: self._closed(connection, error)
        )

    def send(
        self,
        node_id: NodeId,
        address: Address | None,
        message: AnyMessage,
        payloads: Sequence[Buffer],
        on_unreachable: OnUnreachable,
    ) -> None:
        """Send one message, dialling first where that is needed. `on_unreachable` is called, maybe at once, if it cannot be sent.

        The payloads must stay as they are until the message is gone.
        """
        peer = self._peers.get(node_id)
        if peer is not None and peer.connection is not None:
            try:
                peer.connection.send(message, payloads)
            except PeerLost as error:
                on_unreachable(error)
            return
        try:
            peer = self._begin_dial(node_id, address)
            if len(peer.waiting) >= MAX_WAITING:
                raise UnreachableError(f"node {short(node_id)} is being dialled, and {MAX_WAITING} tasks wait for it")
        except ShardnetError as error:
            on_unreachable(error)
            return
        peer.waiting.append(_Waiting(message, payloads, on_unreachable))

    def follow(self, node_id: NodeId, address: Address | None) -> None:
        """The coordinator, which a node that moved tells first, says where it is: a link to where it was leads nowhere."""
        peer = self._peers.get(node_id)
        if peer is None or address is None or peer.told == address:
            return
        before, peer.told = peer.told, address
        peer.alone_until_s = 0.0
        if before is not None and peer.connection is not None:
            connection, peer.connection = peer.connection, None
            connection.abort()
            self._lost(connection, PeerLost(f"node {short(node_id)} is at {address} now, no longer at {before}"))

    async def ask(self, node_id: NodeId, address: Address, question: Question, timeout_s: float) -> Frame[AnyMessage]:
        """Returns: another node's answer, dialling it first where that is needed.

        Raises: its own error; UnreachableError, PeerRefused, PeerLost; DeadlineExceeded.
        """
        connection = await self._connect(node_id, address)
        return await self._questions.ask(connection, question, timeout_s=timeout_s)

    async def measure(self, node_id: NodeId, address: Address, *, timeout_s: float) -> tuple[float, float]:
        """Returns: seconds of a round trip to the other node with a small message, and bandwidth to it (bytes per second).

        The pings come in quick succession. After a rest they take longer, since the daemons' code has left the caches; but rows of runs do not go
        through daemons, and what taking them in and handing them on costs an engine right after llama.cpp is in what it tells of its batches.

        Raises: UnreachableError, PeerRefused, PeerLost; DeadlineExceeded.
        """
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connect(node_id, address)
                quick_s = min([await self._ping(connection, 0, timeout_s) for _ in range(SMALL_PINGS)])
                large_s = await self._ping(connection, PADDING_BYTES, timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the link to node {short(node_id)} at {address} was not measured within {timeout_s:g} s"
            ) from None
        return quick_s, PADDING_BYTES / max(large_s - quick_s, 1e-6)

    def check_addresses(self) -> None:
        """This machine's address is another one: end the links that were made from the old one."""
        for peer in tuple(self._peers.values()):
            if peer.connection is not None:
                peer.connection.check_address()

    async def close(self) -> None:
        """End every link; what is queued is sent first."""
        open_links = [peer.connection for peer in self._peers.values() if peer.connection is not None]
        for peer in self._peers.values():
            peer.connection = None
        await asyncio.gather(*(connection.close() for connection in open_links))

    # -- dialling ------------------------------------------------------------------------------------------------------------

    def _begin_dial(self, node_id: NodeId, address: Address | None) -> _Peer:
        """Returns: the peer, being dialled. Raises: UnreachableError if there is no use in it now."""
        peer = self._peers.setdefault(node_id, _Peer(told=address))
        if peer.dialling is not None:
            return peer
        loop = asyncio.get_running_loop()
        if address is None:
            raise UnreachableError(f"node {short(node_id)} cannot be dialled: it told no address")
        if loop.time() < peer.alone_until_s:
            raise peer.last_error or UnreachableError(f"node {short(node_id)} could not be dialled a moment ago")
        peer.dialling = loop.create_future()
        self._spawn(self._dial(peer, node_id, address), f"dial {short(node_id)}")
        return peer

    async def _dial(self, peer: _Peer, node_id: NodeId, address: Address) -> None:
        assert peer.dialling is not None
        try:
            connection = await dial(
                self._identity, address, self._hello(), expect=node_id, timeout_s=self._dial_timeout_s
            )
        except ShardnetError as error:
            log.info("peer_not_dialled", peer=str(address), peer_id=short(node_id), reason=str(error))
            peer.alone_until_s = asyncio.get_running_loop().time() + self._redial_after_s
            peer.last_error = error
            dialling, peer.dialling = peer.dialling, None
            dialling.set_exception(error)
            dialling.exception()  # whoever waits gets it; nobody may
            waiting, peer.waiting = peer.waiting, []
            for one in waiting:
                one.on_unreachable(error)
            return
        dialling, peer.dialling = peer.dialling, None
        peer.connection, peer.is_adopted = connection, False
        connection.set_handler(
            lambda frame: self._take(connection, frame), lambda error: self._closed(connection, error)
        )
        dialling.set_result(connection)
        waiting, peer.waiting = peer.waiting, []
        for one in waiting:
            try:
                connection.send(one.message, one.payloads)
            except PeerLost as error:
                one.on_unreachable(error)

    async def _connect(self, node_id: NodeId, address: Address) -> Connection:
        peer = self._peers.get(node_id)
        if peer is not None and peer.connection is not None:
            return peer.connection
        peer = self._begin_dial(node_id, address)
        assert peer.dialling is not None
        return await asyncio.shield(peer.dialling)

    # -- frames --------------------------------------------------------------------------------------------------------------

    def _take(self, connection: Connection, frame: Frame[AnyMessage]) -> None:
        if not self._questions.take(connection, frame):
            self._on_frame(connection, frame)

    def _closed(self, connection: Connection, error: ShardnetError) -> None:
        peer = self._peers.get(connection.peer_id)
        if peer is not None and peer.connection is connection:
            peer.connection = None
            self._lost(connection, error)
        else:
            self._questions.lost(connection, error)

    def _lost(self, connection: Connection, error: ShardnetError) -> None:
        self._questions.lost(connection, error)
        self._on_lost(connection.peer_id, error)

    async def _ping(self, connection: Connection, padding_bytes: int, timeout_s: float) -> float:
        """Returns: seconds until the answer. (The event loop's own clock counts in milliseconds.)"""
        ping = Ping(command_id=new_id())
        payloads: list[bytes] = []
        if padding_bytes:
            spec = TensorSpec(name="padding", dtype=Dtype.INT32, shape=(padding_bytes // 4,))
            ping = ping.model_copy(update={"tensors": (spec,)})
            payloads.append(bytes(padding_bytes))
        began_s = time.perf_counter()
        await self._questions.ask(connection, ping, payloads, timeout_s=timeout_s)
        return time.perf_counter() - began_s
