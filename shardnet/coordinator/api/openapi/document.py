"""The OpenAPI document, made of the routes that the server has, of the models that it reads requests with, and of what is said about both.

Source: the OpenAPI specification, version 3.1.1; schemas are JSON Schema draft 2020-12, as pydantic writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.routing import Route

from shardnet import __version__
from shardnet.coordinator.api.openapi.answers import Error
from shardnet.coordinator.api.openapi.fields import FIELDS, REFUSED
from shardnet.coordinator.api.openapi.operations import ERRORS, OPERATIONS, READING, Operation

ABOUT = (
    "OpenAI's completions and chats over the models of a swarm. Unknown fields of a request are ignored; a field that is known and cannot be "
    "honoured is refused by name. `null` is as if a field was left out. Every error has the shape of the schema Error, and at `/v1/messages` that of "
    "MessageError. A GET can be asked as HEAD; OPTIONS says what a path takes."
)
REF = "#/components/schemas/"
Json = dict[str, Any]


def endpoints_of(routes: Iterable[Route]) -> list[tuple[str, str]]:
    """Returns: method and path of each endpoint that the document tells of."""
    told = [one for one in routes if one.include_in_schema]
    return [
        (method, re.sub(r":\w+}", "}", one.path))
        for one in told
        for method in sorted((one.methods or set()) - {"HEAD", "OPTIONS"})
    ]


def document(routes: Iterable[tuple[str, str]]) -> Json:
    """Returns: the document. Args: routes: method and path of each endpoint, parameters as `{name}`."""
    order = {endpoint: at for at, endpoint in enumerate(OPERATIONS)}
    told = [
        (method, path, OPERATIONS.get((method, path)) or _unsaid(method, path))
        for method, path in sorted(routes, key=lambda one: order.get(one, len(order)))
    ]
    paths: Json = {}
    for method, path, operation in told:
        paths.setdefault(path, {})[method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.1",
        "info": {"title": "shardnet", "version": __version__, "description": ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": _schemas([operation for _, _, operation in told]),
            "responses": {str(status): _error(status, when, Error) for status, when in ERRORS.items()},
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "a key that `shardnet key add NAME` made; none is asked for until there is one",
                }
            },
        },
    }


def _unsaid(method: str, path: str) -> Operation:
    return Operation(name=re.sub(r"\W+", "_", f"{method}{path}").strip("_"), summary=path, tag="Others", errors=READING)


def _operation(operation: Operation) -> Json:
    told: Json = {"operationId": operation.name, "summary": operation.summary, "tags": [operation.tag]}
    if operation.text:
        told["description"] = operation.text
    if operation.is_open:
        told["security"] = []
    if operation.named:
        told["parameters"] = [
            {"name": name, "in": "path", "required": True, "description": means, "schema": {"type": "string"}}
            for name, means in operation.named.items()
        ]
    if operation.asks is not None:
        body = {"schema": _ref(operation.asks), "example": dict(operation.example)}
        told["requestBody"] = {"required": True, "content": {"application/json": body}}
    told["responses"] = {"200": {"description": "The answer.", "content": _content(operation)}}
    for status, when in operation.also.items():
        told["responses"][str(status)] = {"description": when, "content": _content(operation)}
    for status in sorted(operation.errors):
        told["responses"][str(status)] = (
            {"$ref": f"#/components/responses/{status}"}
            if operation.refuses is Error
            else _error(status, ERRORS[status], operation.refuses)
        )
    return told


def _content(operation: Operation) -> Json:
    schema = {"type": "object"} if operation.answers is None else _ref(operation.answers)
    content: Json = {"application/json": {"schema": schema}}
    if operation.events is not None:
        content["text/event-stream"] = {
            "schema": {
                "type": "string",
                "description": f'With `"stream": true`: each `data:` line is one {operation.events.__name__}; the last one is `data: [DONE]`. '
                "Lines that begin with a colon are comments. An error is an Error as the last event, and no `[DONE]` follows.",
            },
            "x-event": _ref(operation.events),
        }
    return content


def _error(status: int, when: str, body: type[BaseModel]) -> Json:
    told: Json = {"description": when, "content": {"application/json": {"schema": _ref(body)}}}
    if status == 503:
        told["headers"] = {
            "Retry-After": {"description": "seconds, 60 at most", "schema": {"type": "integer", "minimum": 1}}
        }
    if status == 401:
        told["headers"] = {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}}
    return told


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": REF + model.__name__}


def _schemas(operations: Iterable[Operation]) -> Json:
    wanted: dict[type[BaseModel], JsonSchemaMode] = {Error: "serialization"}
    for one in operations:
        if one.asks is not None:
            wanted[one.asks] = "validation"
        wanted |= {model: "serialization" for model in (one.answers, one.events, one.refuses) if model is not None}
    made: dict[str, Json] = models_json_schema(list(wanted.items()), ref_template=REF + "{model}")[1]["$defs"]
    for name, schema in made.items():
        if "properties" in schema:
            schema["properties"] = _told(name, schema["properties"])
        for part in _parts(schema):
            part.pop("title", None)
            if part.get("default", ...) is None:
                del part["default"]
    return dict(sorted(made.items()))


def _told(model: str, properties: Json) -> Json:
    """Returns: the properties that are not refused, each with what it means, in the order of `FIELDS`."""
    order = {name: at for at, name in enumerate(FIELDS)}
    kept = {field: schema for field, schema in properties.items() if field not in REFUSED}
    for field, schema in kept.items():
        if means := schema.get("description") or FIELDS.get(f"{model}.{field}") or FIELDS.get(field):
            schema["description"] = means
    place = {field: order.get(field, order.get(f"{model}.{field}", len(order))) for field in kept}
    return {field: kept[field] for field in sorted(kept, key=place.__getitem__)}


def _parts(schema: Json) -> Iterator[Json]:
    """Yield a schema and each one within it."""
    yield schema
    for key, value in schema.items():
        if key == "properties":
            within = list(value.values())
        elif key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            within = value
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            within = [value]
        else:
            continue
        for one in within:
            yield from _parts(one)
