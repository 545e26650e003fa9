"""`GET /logs`: server-sent events, a line of a log each. Who may ask the API may read it; where the API asks for no key, its own user alone may."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shardnet.coordinator.api.make_route import MakeRoute
from shardnet.coordinator.api.streaming import EventStream
from shardnet.coordinator.logs.collecting import LogCollector, LogReader
from shardnet.coordinator.logs.merging import Level, Wish
from shardnet.coordinator.page.inviting import who_asks
from shardnet.errors import UsageError
from shardnet.faults import sentence
from shardnet.messages import MAX_LOG_LINES
from shardnet.swarm.api_keys import KeyRing

PATH = "/logs"
QUIET_ROUNDS = 30
"""After so many in which nothing came a comment goes out: proxies give up on silent connections."""
MAX_NAMES = 64


class LogQuery(BaseModel):
    """What may stand behind the path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=MAX_NAMES)] = []
    level: Level = "debug"
    lines: Annotated[int, Field(ge=0, le=MAX_LOG_LINES * MAX_NAMES)] | None = None
    since_s: Annotated[float, Field(ge=0, le=1e9)] | None = None
    follow: bool = False

    def wish(self) -> Wish:
        """Returns: it for the collector."""
        return Wish(tuple(self.node), self.level, self.lines, self.since_s, self.follow)


class LogsEndpoint:
    """The route."""

    def __init__(self, collector: LogCollector, keys: KeyRing) -> None:
        self._collector = collector
        self._keys = keys

    def routes(self, route: MakeRoute) -> list[Route]:
        """Returns: what the API is to serve beside its own."""
        return [route("GET", PATH, self._logs, in_document=False)]

    async def _logs(self, request: Request) -> Response:
        if not self._keys.is_asked_for:
            asker = await who_asks(request, self._keys)
            if not asker.is_own_user or asker.is_forwarded:
                raise UsageError(
                    "the logs of all machines are read by the coordinator's own user on its own machine, or with a key: "
                    "`shardnet key add NAME` makes one, and then the whole API wants one",
                    http_status=403,
                )
        reader = self._collector.open(_query(request).wish())
        return EventStream(_events(reader), reader.close)


def _query(request: Request) -> LogQuery:
    """Raises: UsageError for what cannot be asked for."""
    fields: dict[str, object] = dict(request.query_params)
    if "node" in fields:
        fields["node"] = request.query_params.getlist("node")
    try:
        return LogQuery.model_validate(fields)
    except ValidationError as error:
        raise UsageError(sentence(error)) from None


async def _events(reader: LogReader) -> AsyncIterator[bytes]:
    quiet = 0
    async for entries in reader.entries():
        quiet = 0 if entries else quiet + 1
        if entries:
            yield b"".join(b"data: " + json.dumps(one.as_json()).encode() + b"\n\n" for one in entries)
        elif quiet % QUIET_ROUNDS == 0:
            yield b": here\n\n"
    yield b"data: [DONE]\n\n"
