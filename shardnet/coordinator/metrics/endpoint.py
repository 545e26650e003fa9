"""`GET /metrics` of the HTTP API."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shardnet.coordinator.api.make_route import MakeRoute
from shardnet.metrics.door import PATH
from shardnet.metrics.exposition import Exposition


def metrics_route(route: MakeRoute, exposition: Exposition) -> Route:
    """Returns: what the API is to serve beside its own."""

    async def metrics(request: Request) -> Response:
        accept = ",".join(request.headers.getlist("accept"))
        body, headers = await exposition.answer(accept, request.headers.get("accept-encoding", ""))
        return Response(body, headers=headers)

    return route("GET", PATH, metrics, in_document=False, takes_metrics_keys=True)
