"""One TLS link as the event loop sees it: received bytes become frames at once, sent frames become bytes at once.

Callbacks are synchronous and run on the event loop, because a step of inference waits for them; handlers only decide, and start elsewhere
what takes long. Knows TLS's outcome (who the peer is) and framing, not what any message means but `Refusal`, and the `Ping` and `Pong` by which
the two links of a connection tell each other that somebody is there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from shardnet.errors import PeerLost, PeerRefused, ShardnetError
from shardnet.hosts import is_ours, plain_host
from shardnet.ids import short
from shardnet.log import get
from shardnet.messages import ALIVE, MESSAGES, Address, AnyMessage, ErrorInfo, Ping, Pong, Refusal, Welcome
from shardnet.swarm.tls import peer_node_id
from shardnet.tcp import Patience, tune, unacknowledged
from shardnet.transport.limits import (
    CHECK_INTERVAL_S,
    CHUNK_BYTES,
    CLOSE_TIMEOUT_S,
    MAX_KEPT_BYTES,
    MAX_KEPT_FRAMES,
    MAX_QUEUED_BYTES,
    STALLED_TIMEOUT_S,
)
from shardnet.transport.outbox import Outbox
from shardnet.transport.pace import ReceivingPace, SendingPace, Silence
from shardnet.wire import GREETING, Buffer, Frame, FrameDecoder, Limits, encode

if TYPE_CHECKING:
    import socket
    import ssl

OnFrame = Callable[[Frame[AnyMessage]], None]
OnClose = Callable[[ShardnetError], None]

PATIENCE = Patience(idle_s=5, interval_s=2, questions=3, unacknowledged_s=int(STALLED_TIMEOUT_S))
"""What the kernel notices by itself. The link's own questions are quicker; these stand where the process has no time for them."""

log = get("transport")


class Link(asyncio.BufferedProtocol):
    """Made for each TLS connection, accepted or dialled; greeted by `listener` or `dialer`; then wrapped in a `Connection`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._decoder: FrameDecoder[AnyMessage] = FrameDecoder(MESSAGES, GREETING)
        self._transport: asyncio.Transport
        self._socket: socket.socket | None = None
        self._on_frame: OnFrame | None = None
        self._on_close: OnClose | None = None
        self._kept: deque[Frame[AnyMessage]] = deque()
        self._kept_bytes = 0
        self._reading_paused = False
        self._arrival: asyncio.Future[None] | None = None
        self._outbox: Outbox
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None
        self._receiving = ReceivingPace()
        self._sending = SendingPace()
        self._silence = Silence()
        self._received_bytes = 0
        self._is_greeted = False
        self._sink = memoryview(b"")
        self.peer_id = ""
        self.peername = "?"
        self.asks = True
        """False: a silent peer is not asked whether it is there; only the kernel's questions count."""
        self.opens_at_welcome = False
        """Of the dialling side: what follows the peer's Welcome at once may be of any size."""
        self.error: ShardnetError | None = None
        """Why the link ended; None while it is up."""
        self.refusal: Refusal | None = None
        """The other end's last word, if it gave one."""
        self.broken_by: Exception | None = None
        """The exception that the operating system or TLS ended it with, if one did."""
        self.closed: asyncio.Future[None] = self._loop.create_future()

    # -- asyncio's side ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TLS handshake succeeded: the peer holds the key of a certificate of this swarm."""
        self._transport = cast("asyncio.Transport", transport)
        self._outbox = Outbox(self._transport.write)
        self._transport.set_write_buffer_limits(high=CHUNK_BYTES)
        self._socket = transport.get_extra_info("socket")
        if self._socket is not None:
            with contextlib.suppress(OSError):
                tune(self._socket, PATIENCE)
        peer = transport.get_extra_info("peername")
        self.peername = str(Address(host=plain_host(peer[0]), port=peer[1])) if peer else "?"
        ssl_object: ssl.SSLObject = transport.get_extra_info("ssl_object")
        try:
            self.peer_id = peer_node_id(ssl_object)
        except ShardnetError as error:
            self.refuse(error)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where TLS puts the next bytes: straight into the tensor that they belong to."""
        if self.error is not None:
            if not self._sink:
                self._sink = memoryview(bytearray(4096))
            return self._sink
        return self._decoder.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have arrived."""
        if self.error is not None:
            return
        self._received_bytes += nbytes
        try:
            for frame in self._decoder.advance(nbytes):
                self._deliver(frame)
                if self.error is not None:
                    return
        except ShardnetError as error:
            log.warning("link_evicted", peer=self.peername, node_id=short(self.peer_id), reason=str(error))
            self.refuse(error)
            return
        except Exception:
            log.exception("link_handler_failed", peer=self.peername, node_id=short(self.peer_id))
            self.refuse(ShardnetError("an unexpected error here; its log says more"))
            return
        if self._timer is None and self._decoder.buffered:
            self._watch()

    def eof_received(self) -> bool:
        """The peer sends no more: there is no half-open link."""
        return False

    def pause_writing(self) -> None:
        """The peer reads more slowly than we send."""
        self._outbox.block()
        if self._timer is None and self.error is None:
            self._watch()

    def resume_writing(self) -> None:
        """There is room again."""
        self._outbox.resume()
        if self._closing and not self._outbox.queued_bytes:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The link is gone."""
        self.broken_by = exc
        if self.error is None:
            how = f"broke ({getattr(exc, 'reason', None) or exc})" if exc else "was closed by the other end"
            self._finish(PeerLost(f"the connection to {self} {how}"))
        self._outbox.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.closed.done():
            self.closed.set_result(None)

    # -- our side ------------------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return f"{short(self.peer_id)} at {self.peername}" if self.peer_id else self.peername

    @property
    def queued_bytes(self) -> int:
        """Returns: bytes sent that the socket has not taken yet."""
        return self._outbox.queued_bytes

    async def first_frame(self) -> Frame[AnyMessage]:
        """Returns: the next frame, while there is no handler. Raises: what ended the link."""
        while not self._kept:
            if self.error is not None:
                raise self.error
            self._arrival = self._loop.create_future()
            await self._arrival
        return self._kept.popleft()

    def greeted(self) -> None:
        """The peer may send everything from now on, and shall say something now and then."""
        self._decoder.limits = Limits()
        if not self._is_greeted:
            self._is_greeted = True
            if self._timer is None and self.error is None:
                self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._watch)

    def set_handler(self, on_frame: OnFrame, on_close: OnClose) -> None:
        """Hand over kept frames, then each new one as it comes. If the link has ended already, `on_close` is called soon."""
        self._on_frame, self._on_close = on_frame, on_close
        if self._kept:
            self._loop.call_soon(self._hand_over)
        if self.error is not None:
            self._loop.call_soon(self._tell_closed)

    def send(self, message: AnyMessage, payloads: Sequence[Buffer] = ()) -> None:
        """Queue one frame; what the socket takes at once leaves at once.

        Raises: PeerLost if the link has ended, or ends now because the peer does not read. LocalProtocolError if tensors and payloads differ.
        """
        if self.error is not None:
            raise PeerLost(f"the connection to {self} is closed: {self.error}")
        if self._outbox.queued_bytes > MAX_QUEUED_BYTES:
            raise self._evict(f"it does not read: {self._outbox.queued_bytes} bytes wait for it")
        self._outbox.put(encode(MESSAGES, message, payloads))

    def refuse(self, error: ShardnetError) -> None:
        """Tell the peer why, and end the link."""
        if self.error is None:
            with contextlib.suppress(ShardnetError):
                self.send(Refusal(error=ErrorInfo.of(error)))
            self._finish(error)
            self._close_when_sent()

    def check_address(self) -> None:
        """End the link if it was made from an address that this machine does not have any more."""
        if self.error is None and (moved := self._moved()) is not None:
            self._evict(moved)

    async def close(self) -> None:
        """Send what is queued, then end the link; returns when it has ended."""
        self._finish(PeerLost(f"the connection to {self} was closed here"))
        self._close_when_sent()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.shield(self.closed)
        except TimeoutError:
            self._transport.abort()

    def abort(self) -> None:
        """End the link now; what is queued is lost."""
        self._finish(PeerLost(f"the connection to {self} was cut here"))
        self._outbox.clear()
        self._transport.abort()

    async def discard(self) -> None:
        """As `abort`, and nothing is left of the link when this returns."""
        self.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.shield(self.closed)

    # -- inside --------------------------------------------------------------------------------------------------------------

    def _close_when_sent(self) -> None:
        self._closing = True
        if self._outbox.queued_bytes:
            self._timer = self._loop.call_later(CLOSE_TIMEOUT_S, self._transport.abort)
        else:
            self._transport.close()

    def _deliver(self, frame: Frame[AnyMessage]) -> None:
        if isinstance(frame.message, Refusal):
            self.refusal = frame.message
            self._finish(PeerRefused(f"{self} ended the connection: {frame.message.error.message}"))
            self._transport.close()
        elif isinstance(frame.message, Ping | Pong) and frame.message.command_id == ALIVE and self._is_greeted:
            if isinstance(frame.message, Ping):
                self.send(Pong(command_id=ALIVE))
        elif self._on_frame is not None and not self._kept:
            self._on_frame(frame)
        else:
            if self.opens_at_welcome and isinstance(frame.message, Welcome):
                self.greeted()  # now, not when the dialling task has its turn: the next frame may be in the same packet
            self._kept.append(frame)
            self._kept_bytes += sum(map(len, frame.payloads))
            if len(self._kept) >= MAX_KEPT_FRAMES or self._kept_bytes >= MAX_KEPT_BYTES:
                self._reading_paused = True
                self._transport.pause_reading()
            if self._arrival is not None and not self._arrival.done():
                self._arrival.set_result(None)

    def _hand_over(self) -> None:
        handler = self._on_frame
        try:
            while self._kept and handler is not None:
                handler(self._kept[0])
                self._kept.popleft()
        except ShardnetError as error:
            log.warning("link_evicted", peer=self.peername, node_id=short(self.peer_id), reason=str(error))
            self.refuse(error)
        except Exception:
            log.exception("link_handler_failed", peer=self.peername, node_id=short(self.peer_id))
            self.refuse(ShardnetError("an unexpected error here; its log says more"))
        self._kept.clear()
        self._kept_bytes = 0
        if self._reading_paused:
            self._reading_paused = False
            if self.error is None:
                self._transport.resume_reading()

    def _finish(self, error: ShardnetError) -> None:
        """The link has ended, whoever ended it; only the first reason counts."""
        if self.error is not None:
            return
        # Whoever keeps the error must not keep this link and its buffers alive through the traceback's frames.
        self.error = error.with_traceback(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
        if self._on_close is not None:
            # Soon, not now: `send` may have found it out in the middle of a handler.
            self._loop.call_soon(self._tell_closed)

    def _tell_closed(self) -> None:
        on_close, self._on_close, self._on_frame = self._on_close, None, None
        if on_close is not None and self.error is not None:
            try:
                on_close(self.error)
            except Exception:
                log.exception("link_close_handler_failed", peer=self.peername)

    def _evict(self, reason: str) -> PeerLost:
        log.warning("link_evicted", peer=self.peername, node_id=short(self.peer_id), reason=reason)
        error = PeerLost(f"the connection to {self} was cut: {reason}")
        self._finish(error)
        self._outbox.clear()
        self._transport.abort()
        return error

    def _watch(self) -> None:
        now_s = self._loop.time()
        waiting = self._transport.get_write_buffer_size() + self._outbox.queued_bytes
        reason = None
        if self._decoder.buffered and not self._reading_paused:
            reason = self._receiving.too_slow(
                now_s, frame=self._decoder.frames, payload_bytes=self._decoder.payload_in_progress
            )
        if reason is None:
            taken = self._outbox.put_bytes - waiting
            reason = self._sending.stalled(now_s, taken_bytes=taken, queued_bytes=waiting)
        if reason is None and self._is_greeted and not self._reading_paused:
            reason = self._silent(self._outbox.put_bytes - waiting)
        if reason is not None:
            self._timer = None
            self._evict(reason)
        elif self.error is not None:
            self._timer = None  # it ended over the question
        elif self._is_greeted or self._decoder.buffered or self._outbox.blocked:
            self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._watch)
        else:
            self._timer = None

    def _silent(self, taken_bytes: int) -> str | None:
        """Ask a peer that says nothing whether it is there. Returns: why it is given up, or None."""
        sock, silence = self._socket, self._silence
        on_its_way = 0 if sock is None or sock.fileno() < 0 else unacknowledged(sock)
        silence.look(received_bytes=self._received_bytes, taken_bytes=taken_bytes, unacknowledged_bytes=on_its_way)
        if not silence.ticks:
            return None
        if (moved := self._moved()) is not None:
            return moved
        if silence.asks and self.asks and not self._outbox.blocked:
            with contextlib.suppress(PeerLost):
                self.send(Ping(command_id=ALIVE))
        return silence.verdict if self.asks else None

    def _moved(self) -> str | None:
        own = self._transport.get_extra_info("sockname")
        if not own or is_ours(own):
            return None
        return f"this machine does not have the address {plain_host(own[0])} any more"
