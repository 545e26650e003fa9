"""HTTP connections on which also what never becomes a request is refused in the API's own shape: what is no HTTP, and one connection too many.

uvicorn answers both with a line of plain text. Refuses to know paths and answers.
Source: uvicorn's h11 protocol, which this one goes on.
"""

from __future__ import annotations

from typing import Any

import h11
from starlette.types import Receive, Scope, Send

from shardnet.coordinator.api.errors import error_response
from shardnet.coordinator.api.half_close import HalfCloseProtocol
from shardnet.errors import Busy, UsageError

NO_HTTP = "this is no valid HTTP/1.1 request: look at its first line, its Host and Content-Length or Transfer-Encoding, and at its size"


class RefusingProtocol(HalfCloseProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._most, self.limit_concurrency = self.limit_concurrency, None
        self._app, self.app = self.app, self._unless_too_many

    def send_400_response(self, _msg: str) -> None:
        """Refuse what is no HTTP."""
        answer = error_response(UsageError(NO_HTTP))
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=answer.status_code, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    async def _unless_too_many(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._most is not None and len(self.connections) >= self._most:
            refusal = error_response(Busy(f"{self._most} connections are open already: try again later"))
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)
