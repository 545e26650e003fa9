"""Traces of single requests on demand: who wants one, which are kept, and `GET /traces/{id}`.

A request asks for its own by the header `X-Shardnet-Trace: 1`, or by a W3C `traceparent` whose sampled flag is set; its answer says by which id it
can be had. The last few are kept, in memory. They hold times, counts and names of nodes, no texts and no tokens.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shardnet.coordinator.api.large_json import LargeJSONResponse
from shardnet.coordinator.api.make_route import MakeRoute
from shardnet.coordinator.api.service import Service
from shardnet.coordinator.api.trace_events import trace_json
from shardnet.coordinator.requests.recording import Traced
from shardnet.errors import UsageError
from shardnet.ids import new_id

HEADER = "x-shardnet-trace"
TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
"""Source: W3C, "Trace Context", version 00."""
SAMPLED = 0x01
WANTED = frozenset({"1", "true"})


class Traces:
    """The last few HTTP requests that wanted to be traced. Belongs to the event loop's thread.

    The settings say how many are kept (`requests.traces`); the oldest goes first.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._kept: deque[Traced] = deque()

    def begin(self, request: Request) -> Traced | None:
        """Returns: what a request is to be recorded in; None where nobody wants that."""
        wanted, parent = request.headers.get(HEADER), request.headers.get("traceparent")
        if (wanted is None and parent is None) or not self._service.settings.traces:
            return None
        found = TRACEPARENT.fullmatch(parent.strip()) if parent is not None else None
        if (wanted or "").strip().lower() not in WANTED and not (found and int(found[2], 16) & SAMPLED):
            return None
        return Traced(found[1] if found else new_id(), self._service.requests.now_s())

    def keep(self, traced: Traced) -> None:
        """Its request was answered, or its answer has begun."""
        if traced.recordings:
            self._kept.append(traced)
            if len(self._kept) > self._service.settings.traces:
                self._kept.popleft()

    def routes(self, route: MakeRoute) -> list[Route]:
        """Returns: what the API serves beside its own."""
        return [route("GET", "/traces/{trace_id}", self._get, in_document=False)]

    async def _get(self, request: Request) -> Response:
        trace_id = request.path_params["trace_id"]
        found = [one for traced in self._kept if traced.trace_id == trace_id for one in traced.recordings]
        if not found:
            raise UsageError(
                f"there is no trace {trace_id[:64]!r}: send a request with 'X-Shardnet-Trace: 1', and take the id of that header in its answer; "
                f"the last {self._service.settings.traces} are kept (requests.traces)",
                http_status=404,
            )
        told = trace_json(found, self._service.requests.now_s(), self._service.describe_stage, at_unix_s=time.time())
        return await asyncio.to_thread(LargeJSONResponse, told, {"Cache-Control": "no-store"})
