"""JSON of answers that may be large, written slice by slice and sent the same way.

The encoder in C keeps the interpreter's lock from the first entry to the last: for a million tokens a second in which the event loop stands still,
whatever thread writes. So no list is encoded, copied or sent as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

SLICE = 256
"""Entries of a list that are written at once."""
CHUNK = 1 << 18
"""Characters, about, that are sent at once."""


class LargeJSONResponse(Response):
    """A JSON response, for a thread to make. Iterators in it are lists of entries that exist one slice at a time."""

    media_type = "application/json"

    def __init__(self, content: Any, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = 200
        self.background = None
        self.chunks = list(_chunks(content))
        self.init_headers({"Content-Length": str(sum(map(len, self.chunks))), **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for left, chunk in zip(range(len(self.chunks))[::-1], self.chunks, strict=True):
            await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})


def _chunks(content: Any) -> Iterator[bytes]:
    some, size = list[str](), 0
    for piece in pieces(content):
        some.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield "".join(some).encode()
            some, size = [], 0
    yield "".join(some).encode()


def pieces(value: Any) -> Iterator[str]:
    """Yield the JSON text of a value. Objects, and lists that are short, are taken apart as deep as they are; entries of long ones are small."""
    if isinstance(value, dict):
        between = "{"
        for key, one in value.items():
            yield f"{between}{_text(key)}:"
            yield from pieces(one)
            between = ","
        yield "}" if value else "{}"
    elif isinstance(value, Iterator) or (isinstance(value, list) and len(value) > SLICE):
        between, entries = "[", iter(value)
        while some := list(islice(entries, SLICE)):
            yield between + _text(some)[1:-1]
            between = ","
        yield "]" if between == "," else "[]"
    elif isinstance(value, list):
        between = "["
        for one in value:
            yield between
            yield from pieces(one)
            between = ","
        yield "]" if value else "[]"
    else:
        yield _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
