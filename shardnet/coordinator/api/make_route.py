"""How the API makes a route for somebody else: with its fences, and its errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Handler = Callable[[Request], Awaitable[Response]]


class MakeRoute(Protocol):
    """`Api` has it."""

    def __call__(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        needs_key: bool = True,
        in_document: bool = True,
        takes_metrics_keys: bool = False,
    ) -> Route: ...


MoreRoutes = Callable[[MakeRoute], list[Route]]
"""Routes of somebody else beside the API's own."""
