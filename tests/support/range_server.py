"""A web server on loopback that gives ranges of files, and misbehaves in the ways that web servers do."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RANGE_START = "bytes="


@dataclass(slots=True)
class Served:
    """What the server does, and what it was asked. Change it while it runs."""

    files: dict[str, bytes | Path]
    """By path, with the leading slash."""
    has_ranges: bool = True
    validators: bool = True
    """Send ETag and Last-Modified."""
    etags: dict[str, str] = field(default_factory=dict)
    """ETags that are not the content's hash."""
    cuts: deque[int] = field(default_factory=deque)
    """For the next requests, one after another: break the connection after so many bytes of the body."""
    statuses: deque[int] = field(default_factory=deque)
    """For the next requests: answer with this status and nothing else."""
    retry_after: str = ""
    redirects: dict[str, str] = field(default_factory=dict)
    expired: set[str] = field(default_factory=set)
    """Queries that are answered with 403."""
    shift: int = 0
    """Send a range that begins so many bytes later."""
    at_most: int = 1 << 40
    """Bytes of one answer, whatever was asked for."""
    content_type: str = "application/octet-stream"
    token: str = ""
    """Without it in `Authorization`: 401."""
    more_headers: dict[str, str] = field(default_factory=dict)
    """In place of what it would say itself."""
    wait: threading.Event | None = None
    """Answer nothing until it is set."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of all requests, lower case; `:path` and `:method` among them."""
    sent_bytes: int = 0
    counting: threading.Lock = field(default_factory=threading.Lock)

    @property
    def asked(self) -> list[str]:
        """Returns: the ranges that were asked for."""
        return [seen.get("range", "") for seen in self.headers]

    def content(self, path: str) -> bytes:
        data = self.files[path]
        return data.read_bytes() if isinstance(data, Path) else data


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    served: Served

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        served = self.server.served
        path = self.path.split("?", 1)[0]
        served.headers.append(
            {key.lower(): value for key, value in self.headers.items()} | {":path": self.path, ":method": self.command}
        )
        if served.wait is not None:
            served.wait.wait(30)
        if self.path.partition("?")[2] in served.expired:
            self._head(403, 0, {})
        elif path in served.redirects:
            self._head(302, 0, {"Location": served.redirects[path]})
        elif served.statuses:
            self._head(served.statuses.popleft(), 0, {"Retry-After": served.retry_after} if served.retry_after else {})
        elif served.token and self.headers.get("Authorization") != f"Bearer {served.token}":
            self._head(401, 0, {})
        elif path not in served.files:
            self._head(404, 0, {})
        else:
            self._give(served, path)

    def _give(self, served: Served, path: str) -> None:
        data = served.content(path)
        facts = {"Content-Type": served.content_type}
        etag = served.etags.get(path) or f'"{hashlib.md5(data).hexdigest()}"'
        if served.validators:
            facts |= {"ETag": etag, "Last-Modified": "Sat, 01 Aug 2026 10:00:00 GMT"}
        wanted = self.headers.get("Range", "")
        condition = self.headers.get("If-Range")
        is_partial = served.has_ranges and wanted.startswith(RANGE_START) and condition in (None, etag)
        if not is_partial:
            self._body(200, data, facts)
            return
        first, last = (int(number) for number in wanted.removeprefix(RANGE_START).split("-"))
        first += served.shift
        if first >= len(data):
            self._head(416, 0, {"Content-Range": f"bytes */{len(data)}"})
            return
        body = data[first : last + 1][: served.at_most]
        self._body(206, body, facts | {"Content-Range": f"bytes {first}-{first + len(body) - 1}/{len(data)}"})

    def _body(self, status: int, body: bytes, facts: dict[str, str]) -> None:
        served = self.server.served
        self._head(status, len(body), facts)
        if served.cuts:
            body = body[: served.cuts.popleft()]
            self.close_connection = True
        with served.counting:  # before they are there: whoever has them may look at once
            served.sent_bytes += len(body)
        self.wfile.write(body)

    def _head(self, status: int, length: int, facts: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (facts | self.server.served.more_headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


@contextmanager
def range_server(
    files: dict[str, bytes | Path], port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, Served]]:
    """Yield the server's address, without a slash at its end, and what it does. Afterwards its port is free."""
    server = _Server(("127.0.0.1", port), _Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.served = Served(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}", server.served
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
