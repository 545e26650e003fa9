"""Our errors in the shape that OpenAI clients understand."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse

from shardnet.errors import (
    LOADING,
    Busy,
    ContextExceeded,
    DeadlineExceeded,
    NoRoomError,
    PlacementError,
    ShardnetError,
    UnreachableError,
    UsageError,
)

RETRY_AFTER_S = 5.0
MAX_RETRY_AFTER_S = 60
"""A client that is told to wait longer than two minutes does not come back at all (openai 3.57)."""


def status_of(error: ShardnetError) -> int:
    """Returns: the HTTP status for an error of ours."""
    match error:
        case UsageError() if "unknown_model" in error.facts:
            return 404
        case UsageError() if isinstance(status := error.facts.get("http_status"), int):
            return status
        case UsageError() | ContextExceeded():
            return 400
        case Busy() | PlacementError() | NoRoomError() | UnreachableError():
            return 503
        case DeadlineExceeded():
            return 504
        case _:
            return 500


def error_body(error: ShardnetError) -> dict[str, object]:
    """Returns: the JSON of an error."""
    return {"error": error_object(error)}


def error_object(error: ShardnetError) -> dict[str, object]:
    """Returns: what went wrong. `shardnet_code` is its own code, for our commands; `loading`: how far a model on its way is."""
    status = status_of(error)
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = {"CONTEXT_EXCEEDED": "context_length_exceeded"}.get(error.code, error.code.lower())
    if status == 404:
        code = "model_not_found"
    if status == 401:
        code = "invalid_api_key"
    body: dict[str, object] = {
        "message": str(error),
        "type": kind,
        "param": error.facts.get("param"),
        "code": code,
        "shardnet_code": error.code,
    }
    loading = {name.removeprefix(LOADING): fact for name, fact in error.facts.items() if name.startswith(LOADING)}
    return body | ({"loading": loading} if loading else {})


def error_response(error: ShardnetError) -> JSONResponse:
    """Returns: the response for an error of ours."""
    return JSONResponse(error_body(error), status_code=status_of(error), headers=error_headers(error))


def error_headers(error: ShardnetError) -> dict[str, str]:
    """Returns: what a client is told beside the body."""
    status = status_of(error)
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if status != 503:
        return {}
    wait = error.facts.get("retry_after_s")
    wait = math.ceil(wait if isinstance(wait, int | float) else RETRY_AFTER_S)
    return {"Retry-After": str(min(max(wait, 1), MAX_RETRY_AFTER_S))}
