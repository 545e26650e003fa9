"""Our errors in the shape that Anthropic's clients understand."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from shardnet.coordinator.api.errors import error_headers, status_of
from shardnet.errors import ShardnetError

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}
"""HTTP status -> the API's name for it; of others see `kind_of`."""


def kind_of(status: int) -> str:
    """Returns: the API's name for an error of this HTTP status."""
    return KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")


def anthropic_error(status: int, message: str, error_code: object = None) -> dict[str, Any]:
    """Returns: the JSON of an error, alone or as an event. Args: error_code: a finer name, which clients act upon."""
    error: dict[str, Any] = {"type": kind_of(status), "message": message}
    return {"type": "error", "error": error | ({"details": {"error_code": error_code}} if error_code else {})}


def anthropic_response(error: ShardnetError) -> JSONResponse:
    """Returns: the response for an error of ours."""
    status = status_of(error)
    body = anthropic_error(status, str(error), error.facts.get("error_code"))
    return JSONResponse(body, status_code=status, headers=error_headers(error))
