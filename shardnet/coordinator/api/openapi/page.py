"""The page on which every endpoint can be tried: three files beside this one, and what a browser is told about them.

Nothing on it comes from elsewhere, and a browser is told to run and to fetch nothing else.
"""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

PAGE = {
    "/docs": ("try.html", "text/html"),
    "/docs/try.css": ("try.css", "text/css"),
    "/docs/try.js": ("try.js", "text/javascript"),
}
"""Path -> file and type."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Source: Content Security Policy Level 3."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


async def page_part(request: Request) -> Response:
    """Returns: the page, or the part of it that the path names."""
    file, media_type = PAGE[request.scope["path"]]
    return Response(await asyncio.to_thread(_content, file), media_type=media_type, headers=HEADERS)


@functools.cache
def _content(file: str) -> bytes:
    return Path(__file__).with_name(file).read_bytes()
