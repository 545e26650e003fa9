"""The engine's own links: rows of runs go from one node's engine straight to the next one's. Lives in the engine process.

A row that has to pass through both daemons costs three wake-ups and two rounds of two event loops, right after llama.cpp streamed its weights through
the caches: half a millisecond, where a small model's stage computes for three. Here it costs one wake-up. docs/decisions/0004-row-links.md.

Such a link is TLS 1.3 between members, like every other, on the nodes' usual ports: ALPN tells the daemon to hand the connection to its engine. It
carries `NextStep` frames of `shardnet.wire`, from who dialled to who accepted. The daemon judges who the other end is and says so with
`TakeRows`; then the accepting side sends one byte, and rows may come. Nothing is awaited: what cannot be handed on here goes through the daemons.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple

from shardnet.errors import RemoteProtocolError
from shardnet.inference.engine.protocol import ROWS, DialRows, Membership, RowsLost, RowsMet
from shardnet.inference.worker.row_link import WELCOME, OnRow, RowLink
from shardnet.mutual_tls import mutual_context
from shardnet.tcp import Patience, tune
from shardnet.wire import Buffer

CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 120
"""A link whose other end takes nothing for so long is over, and the node may be dialled anew: longer than an engine computes on a prompt."""
PATIENCE = Patience(
    idle_s=SILENCE_TIMEOUT_S // 4, interval_s=SILENCE_TIMEOUT_S // 12, unacknowledged_s=SILENCE_TIMEOUT_S
)
MAX_HANDSHAKES = 16
"""At a time, each of those that we and that others begin; whoever comes then is turned away, and goes through the daemons."""


class _Met(NamedTuple):
    link_id: int
    tls: ssl.SSLSocket
    is_dialled: bool


class _NotMet(NamedTuple):
    link_id: int
    reason: str


class RowLinks:
    """All row links of this engine.

    Args:
        membership: None: there are none.
        poll: told of the sockets to look at; `serve` is to be called for them.
        take: gets each row that came.
        tell: sends to the daemon.
        lost: called with a link over which rows went, before the daemon hears of its end.
        wake: called on another thread when `take_met` has something to do.
    """

    def __init__(
        self,
        membership: Membership | None,
        poll: select.poll,
        take: OnRow,
        tell: Callable[[RowsMet | RowsLost], None],
        lost: Callable[[RowLink], None],
        wake: Callable[[], None],
    ) -> None:
        self._membership = membership
        self._poll = poll
        self._take = take
        self._tell = tell
        self._lost = lost
        self._wake = wake
        self._contexts: dict[bool, ssl.SSLContext] = {}  # by whether we dial
        self._links: dict[int, RowLink] = {}  # by file descriptor
        self._onward: dict[str, RowLink] = {}  # by node id, those that rows may go over
        self._met: SimpleQueue[_Met | _NotMet] = SimpleQueue()
        self._to_flush: dict[RowLink, None] = {}
        self._dialling = threading.Semaphore(MAX_HANDSHAKES)
        self._accepting = threading.Semaphore(MAX_HANDSHAKES)  # apart: anybody on the network can keep it busy

    def to(self, node_id: str) -> RowLink | None:
        """Returns: the link to hand rows on to a node, if there is one now."""
        return self._onward.get(node_id)

    # -- making them ---------------------------------------------------------------------------------------------------------

    def dial(self, order: DialRows) -> None:
        """Connect, on a thread."""
        self._start(
            order.link_id,
            lambda: socket.create_connection((order.host, order.port), CONNECT_TIMEOUT_S),
            is_dialled=True,
        )

    def adopt(self, link_id: int, connection: socket.socket) -> None:
        """Take over a connection whose first bytes have not been read, on a thread."""
        self._start(link_id, lambda: connection, is_dialled=False)

    def _start(self, link_id: int, connect: Callable[[], socket.socket], *, is_dialled: bool) -> None:
        if not (self._dialling if is_dialled else self._accepting).acquire(blocking=False):
            if not is_dialled:
                connect().close()
            self._tell(RowsLost(link_id=link_id, reason=f"{MAX_HANDSHAKES} handshakes are under way"))
            return
        threading.Thread(
            target=self._shake_hands, args=(link_id, connect, is_dialled), name=f"row-link-{link_id}", daemon=True
        ).start()

    def _shake_hands(self, link_id: int, connect: Callable[[], socket.socket], is_dialled: bool) -> None:
        """On a thread of its own."""
        raw: socket.socket | None = None
        try:
            raw = connect()
            context = self._context(is_dialled)
            raw.settimeout(CONNECT_TIMEOUT_S)
            tune(raw, PATIENCE)
            tls = context.wrap_socket(raw, server_side=not is_dialled)
            if tls.selected_alpn_protocol() != ROWS:
                raise ConnectionRefusedError("the other node does not take rows this way")
            tls.setblocking(False)
            self._met.put(_Met(link_id, tls, is_dialled))
        except (OSError, UnicodeError) as error:  # the latter for a host whose name is none
            if raw is not None:
                raw.close()
            self._met.put(_NotMet(link_id, str(error) or type(error).__name__))
        finally:
            (self._dialling if is_dialled else self._accepting).release()
        self._wake()

    def _context(self, is_dialled: bool) -> ssl.SSLContext:
        if is_dialled not in self._contexts:
            member = self._membership
            if member is None:
                raise ConnectionRefusedError("this engine makes no links")
            context = mutual_context(
                is_server=not is_dialled, authority=member.authority, certificate=member.certificate, key=member.key
            )
            context.set_alpn_protocols([ROWS])
            self._contexts[is_dialled] = context
        return self._contexts[is_dialled]

    def take_met(self) -> None:
        """Tell the daemon of connections whose handshake is done."""
        while True:
            try:
                met = self._met.get_nowait()
            except Empty:
                return
            if isinstance(met, _NotMet):
                self._tell(RowsLost(link_id=met.link_id, reason=met.reason[:500]))
                continue
            certificate = met.tls.getpeercert(binary_form=True)
            assert certificate is not None  # CERT_REQUIRED
            self._links[met.tls.fileno()] = RowLink(met.link_id, met.tls, is_dialled=met.is_dialled)
            self._tell(RowsMet(link_id=met.link_id, certificate=certificate.hex()))

    def allow(self, link_id: int, node_id: str) -> None:
        """The daemon knows who the other end is, and wants the link."""
        link = self._by_id(link_id)
        if link is None:
            return
        link.node_id = node_id
        self._poll.register(link.tls.fileno(), select.POLLIN)
        try:
            if link.is_dialled:
                self._receive(link)  # the welcome may be here
            else:
                link.is_welcome = True
                link.tls.send(WELCOME)
        except (OSError, RemoteProtocolError) as error:
            self.end(link, str(error))

    def cut(self, link_id: int) -> None:
        """The daemon does not want the link any more."""
        link = self._by_id(link_id)
        if link is not None:
            self.end(link, "it is not wanted any more")

    def _by_id(self, link_id: int) -> RowLink | None:
        return next((link for link in self._links.values() if link.link_id == link_id), None)

    # -- using them ----------------------------------------------------------------------------------------------------------

    def serve(self, descriptor: int, events: int) -> None:
        """Look after a socket that `poll` named."""
        link = self._links.get(descriptor)
        if link is None:
            return
        try:
            if events & select.POLLOUT:
                link.flush()
                self._watch(link)
            if events & ~select.POLLOUT:
                self._receive(link)
        except (OSError, RemoteProtocolError) as error:
            self.end(link, str(error))

    def put(self, link: RowLink, header: bytes, payload: Sequence[Buffer]) -> None:
        """Hand a row on, with the next `flush`."""
        link.put(header, payload)
        self._to_flush[link] = None

    def flush(self) -> None:
        """Send what was put."""
        links, self._to_flush = self._to_flush, {}
        for link in links:
            try:
                link.flush()
            except OSError as error:
                self.end(link, str(error))
                continue
            if link.unsent:
                self._watch(link)

    def look(self) -> None:
        """End links over which rows do not get through any more. Called about once a second."""
        for link in tuple(self._links.values()):
            try:
                reason = link.trouble()
            except OSError as error:
                reason = str(error)
            if reason is not None:
                self.end(link, reason)

    def _receive(self, link: RowLink) -> None:
        link.receive(self._take)
        if link.is_dialled and link.is_welcome:
            self._onward[link.node_id] = link

    def _watch(self, link: RowLink) -> None:
        self._poll.modify(link.tls.fileno(), select.POLLIN | (select.POLLOUT if link.unsent else 0))

    def end(self, link: RowLink, reason: str) -> None:
        """Close a link, and say so."""
        descriptor = link.tls.fileno()
        if self._links.pop(descriptor, None) is None:
            return
        if self._onward.get(link.node_id) is link:
            del self._onward[link.node_id]
        with contextlib.suppress(KeyError):  # it was not allowed yet
            self._poll.unregister(descriptor)
        link.tls.close()
        self._lost(link)
        self._tell(RowsLost(link_id=link.link_id, reason=reason[:500]))
