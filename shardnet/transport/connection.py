"""What the daemons hold: a link to a peer that is proved to be a member and has greeted. The same on both sides."""

from __future__ import annotations

from collections.abc import Sequence

from shardnet.errors import ShardnetError
from shardnet.ids import NodeId, short
from shardnet.log import get
from shardnet.messages import AnyMessage, Hello, Welcome
from shardnet.swarm.identity import Identity
from shardnet.swarm.tls import check_not_revoked
from shardnet.transport.link import Link, OnClose, OnFrame
from shardnet.wire import Buffer

log = get("transport")


class Connection:
    """One peer. `peer_id` is what TLS proved, `peer` what the other side said of itself, `peername` its `host:port` for logs."""

    def __init__(self, link: Link, identity: Identity, peer: Hello | Welcome) -> None:
        self.peer_id: NodeId = link.peer_id
        self.peername = link.peername
        self.peer = peer
        self._link = link
        self._identity = identity
        self._waiting: list[tuple[AnyMessage, Sequence[Buffer]]] | None = None
        unwatch = identity.watch_revocations(self._on_revocations)
        link.closed.add_done_callback(lambda _: unwatch())

    def __repr__(self) -> str:
        return f"Connection({short(self.peer_id)} at {self.peername})"

    @property
    def is_open(self) -> bool:
        """True until either side has ended the link."""
        return self._link.error is None

    @property
    def queued_bytes(self) -> int:
        """Returns: bytes handed to `send` that the socket has not taken yet."""
        return self._link.queued_bytes

    def send(self, message: AnyMessage, payloads: Sequence[Buffer] = ()) -> None:
        """Send one message, at once as far as the socket takes it. Payloads may be reused when this returns.

        Raises: PeerLost if the connection is closed, or if the peer let more than `limits.MAX_QUEUED_BYTES` pile up (it is cut off then);
            LocalProtocolError if the payloads are not what `message.tensors` describes.
        """
        if self._waiting is not None:
            self._waiting.append((message, payloads))
        else:
            self._link.send(message, payloads)

    def set_handler(self, on_frame: OnFrame, on_close: OnClose) -> None:
        """Have frames handled as they come, on the event loop, in the very call that received them; they must not block.

        Frames that came before are kept (to a bound) and handed over first. A ShardnetError from `on_frame` refuses the peer with that error.
        `on_close` is called exactly once, with the reason, however the connection ends.
        """
        self._link.set_handler(on_frame, on_close)

    def refuse(self, error: ShardnetError) -> None:
        """Tell the peer why and end the connection."""
        self._link.refuse(error)

    def check_address(self) -> None:
        """End the connection if it was made from an address that this machine does not have any more."""
        self._link.check_address()

    async def close(self) -> None:
        """Send what is queued, then end the connection; returns when it has ended. Harmless when repeated."""
        await self._link.close()

    def abort(self) -> None:
        """End the connection now."""
        self._link.abort()

    # -- for the listener ----------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Keep what is sent until `release`: nothing may overtake Welcome."""
        self._waiting = []

    def release(self, welcome: Welcome) -> None:
        """Send Welcome, then what was kept."""
        waiting, self._waiting = self._waiting or [], None
        for message, payloads in [(welcome, ()), *waiting]:
            self._link.send(message, payloads)

    def _on_revocations(self, _revoked: frozenset[str]) -> None:
        try:
            check_not_revoked(self._identity, self.peer_id)
        except ShardnetError as error:
            log.warning("link_evicted", peer=self.peername, node_id=short(self.peer_id), reason=str(error))
            self._link.refuse(error)
