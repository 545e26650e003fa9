"""The page's routes: its files, which anybody may see who may name this host, and the swarm's state, which wants a key where the API does."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shardnet.coordinator.api.make_route import MakeRoute
from shardnet.coordinator.api.streaming import EventStream
from shardnet.coordinator.page.feed import Feed
from shardnet.coordinator.page.inviting import make_token, who_asks
from shardnet.errors import UsageError
from shardnet.messages import Address
from shardnet.swarm.api_keys import KeyRing
from shardnet.swarm.identity import SwarmIdentity

STATIC = Path(__file__).with_name("static")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing from outside, nothing inline, no text that becomes markup."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "Cache-Control": "no-cache",
}
NOT_KEPT = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class Asset:
    """One of the page's files."""

    body: bytes
    packed: bytes
    kind: str
    tag: str


def load_assets(folder: Path = STATIC) -> dict[str, Asset]:
    """Returns: file name -> its bytes, also compressed. Blocking."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in KINDS:
            body = path.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
            found[path.name] = Asset(body, gzip.compress(body, mtime=0), KINDS[path.suffix], tag)
    return found


class Page:
    """All of it.

    Args:
        enrol: where other machines are taken in, as they reach it.
    """

    def __init__(
        self,
        feed: Feed,
        swarm: SwarmIdentity,
        keys: KeyRing,
        enrol: Callable[[], Address | None],
        *,
        assets: dict[str, Asset],
    ) -> None:
        self.feed = feed
        self._swarm = swarm
        self._keys = keys
        self._enrol = enrol
        self._assets = assets

    def routes(self, route: MakeRoute) -> list[Route]:
        """Returns: what the API is to serve beside its own."""
        return [
            route("GET", "/", self._index, needs_key=False, in_document=False),
            route("GET", "/page/state", self._state, in_document=False),
            route("GET", "/page/events", self._events, in_document=False),
            route("POST", "/page/join-token", self._join_token, in_document=False),
            route("GET", "/page/{name}", self._asset, needs_key=False, in_document=False),
        ]

    async def _index(self, request: Request) -> Response:
        return self._file(request, "index.html")

    async def _asset(self, request: Request) -> Response:
        return self._file(request, request.path_params["name"])

    def _file(self, request: Request, name: str) -> Response:
        asset = self._assets.get(name)
        if asset is None:
            raise UsageError(f"the page has no file {name[:100]!r}", http_status=404)
        headers = HEADERS | {"ETag": asset.tag, "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == asset.tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(asset.packed, media_type=asset.kind, headers=headers | {"Content-Encoding": "gzip"})
        return Response(asset.body, media_type=asset.kind, headers=headers)

    async def _state(self, _request: Request) -> Response:
        return JSONResponse(self.feed.whole(), headers=NOT_KEPT)

    async def _events(self, _request: Request) -> Response:
        return EventStream(self.feed.follow(), lambda: None)

    async def _join_token(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise UsageError("send the header 'Content-Type: application/json'")  # a page of another site cannot
        (await who_asks(request, self._keys)).check()
        return JSONResponse(await make_token(self._swarm, self._enrol()), headers=NOT_KEPT)
