"""The one connection that a node keeps to its coordinator: dialled, dialled again when it is lost, for as long as the node lives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from shardnet.errors import PeerLost, ShardnetError
from shardnet.ids import short
from shardnet.lifecycle import Backoff
from shardnet.log import get
from shardnet.messages import Address, AnyMessage, Hello, Welcome
from shardnet.node.links.questions import Question, Questions
from shardnet.swarm.identity import Identity
from shardnet.transport import Connection, dial
from shardnet.wire import Buffer, Frame

LASTING_S = 2.0
"""A connection that held for less was no success: the next attempt waits longer."""

MOST_DELAY_S = 2.0
"""Between two dials, however long the coordinator has been away: a network that is back should not be waited for."""

log = get("node")


class CoordinatorLink:
    """Dials, greets, hands frames over, and begins again.

    Args:
        find: tells where the coordinator is; asked before every dial, since it may have moved.
        hello: what we say, given the address that is dialled.
        on_joined: called when the coordinator has welcomed us, before any of its frames are handled.
        on_refused: called when it did not, or was not to be reached.
    """

    def __init__(
        self,
        identity: Identity,
        find: Callable[[], Awaitable[Address]],
        hello: Callable[[Address], Hello],
        on_joined: Callable[[Welcome], None],
        on_left: Callable[[], None],
        on_refused: Callable[[ShardnetError], None],
        on_frame: Callable[[Connection, Frame[AnyMessage]], None],
        *,
        timeout_s: float,
    ) -> None:
        self._identity = identity
        self._find = find
        self._hello = hello
        self._on_joined = on_joined
        self._on_left = on_left
        self._on_refused = on_refused
        self._on_frame = on_frame
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._questions = Questions()

    @property
    def is_up(self) -> bool:
        """True while this node is a member of a coordinator's swarm."""
        return self._connection is not None

    def tell(self, message: AnyMessage, payloads: Sequence[Buffer] = ()) -> None:
        """Send to the coordinator; does nothing while there is none: it learns what it needs when we are back."""
        if self._connection is None:
            return
        try:
            self._connection.send(message, payloads)
        except PeerLost as error:
            log.debug("coordinator_not_told", reason=str(error))

    def check_address(self) -> None:
        """This machine's address is another one: dial anew, if the connection was made from the old one."""
        if self._connection is not None:
            self._connection.check_address()

    async def ask(self, question: Question, timeout_s: float) -> Frame[AnyMessage]:
        """Returns: the coordinator's answer. Raises: its own error; PeerLost, also if there is no coordinator; DeadlineExceeded."""
        if self._connection is None:
            raise PeerLost("there is no coordinator at the moment")
        return await self._questions.ask(self._connection, question, timeout_s=timeout_s)

    async def run(self) -> None:
        """Keep the connection until cancelled; then send what is queued and end it."""
        backoff = Backoff(most_s=MOST_DELAY_S)
        told = ""
        try:
            while True:
                try:
                    address = await self._find()
                    began_s = asyncio.get_running_loop().time()
                    reason = await self._stay(address)
                    log.warning("node_disconnected", reason=str(reason))
                    told = ""
                    if asyncio.get_running_loop().time() - began_s > LASTING_S:
                        backoff.reset()
                except ShardnetError as error:
                    if str(error) != told:  # once for each reason, not once for each attempt
                        told = str(error)
                        log.warning("node_not_joined", reason=told)
                await asyncio.sleep(backoff.next_delay_s())
        finally:
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.close()

    async def _stay(self, address: Address) -> ShardnetError:
        """Returns: why the connection ended. Raises: UnreachableError, PeerRefused if there was none."""
        try:
            connection = await dial(self._identity, address, self._hello(address), timeout_s=self._timeout_s)
        except ShardnetError as error:
            self._on_refused(error)
            raise
        ended: asyncio.Future[ShardnetError] = asyncio.get_running_loop().create_future()

        def on_close(error: ShardnetError) -> None:
            self._questions.lost(connection, error)
            if not ended.done():
                ended.set_result(error)

        welcome = connection.peer
        if not isinstance(welcome, Welcome):
            connection.abort()
            raise PeerLost(f"the daemon at {address} gave no welcome")
        self._connection = connection
        log.info(
            "node_joined",
            coordinator=str(address),
            name=self._identity.name,
            node_id=short(self._identity.node_id),
            epoch=welcome.epoch,
        )
        self._on_joined(welcome)
        connection.set_handler(lambda frame: self._take(connection, frame), on_close)
        reason = await ended  # cancelled here, `run` closes the connection in order
        self._connection = None
        self._on_left()
        return reason

    def _take(self, connection: Connection, frame: Frame[AnyMessage]) -> None:
        if not self._questions.take(connection, frame):
            self._on_frame(connection, frame)
