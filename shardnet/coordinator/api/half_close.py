"""HTTP connections whose client closes its half once the request is sent (`shutdown(SHUT_WR)`), and still waits for the answer.

TCP tells the end of what a client sends alike, whether it is gone or listens on. Only a write tells: to one that is gone the kernel answers with a
reset. So where a request is whole and unanswered, an interim response is written that every client has to skip (`100 Continue`), and the socket is
looked at for the reset; a stream that has begun is told, and writes a comment. A client of HTTP/1.0 knows no interim responses: until its answer
began, its end is taken for a farewell.

Refuses to know paths and answers.
Source: RFC 9110, 15.2 (a client takes interim responses that it did not ask for); uvicorn's h11 protocol, which this one goes on.
"""

from __future__ import annotations

import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LOOK_S = 0.2
"""So often a half-closed connection is looked at. Nothing else would: it is not read any more."""


class HalfCloseProtocol(H11Protocol):
    """One connection."""

    _half_closed = False

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. Returns: True if the connection stays open for its answer."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        if not cycle.response_started:
            if cycle.scope["http_version"] == "1.0":
                return False
            cycle.waiting_for_100_continue = False
            interim = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(interim) or b"")
        self._half_closed = True
        cycle.message_event.set()  # whoever waits in `receive` gets an empty `http.request`
        self.loop.call_later(LOOK_S, self._look)
        return True

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        own = self.transport.get_extra_info("socket")
        if own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        self.loop.call_later(LOOK_S, self._look)

    def on_response_complete(self) -> None:
        """An answer is out: the last one, unless the client sent a further request before its end."""
        super().on_response_complete()
        if self._half_closed and self.cycle.response_complete:
            self.transport.close()
