"""What an OpenAPI document of ours is made of, as a JSON schema that knows no other keys; and schemas with nothing left open.

Source: the OpenAPI specification, version 3.1.1.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def _object(required: Json | None = None, **optional: Json) -> Json:
    required = required or {}
    return {
        "type": "object",
        "properties": required | optional,
        "required": sorted(required),
        "additionalProperties": False,
    }


def _map(of: Json, names: str = ".") -> Json:
    return {"type": "object", "patternProperties": {names: of}, "additionalProperties": False}


TEXT: Json = {"type": "string", "minLength": 1}
TEXTS: Json = {"type": "array", "items": TEXT}
SCHEMA: Json = {"type": "object"}
REF = _object({"$ref": {"type": "string", "pattern": "^#/components/"}})
CONTENT = _map(_object({"schema": SCHEMA}, example={}, **{"x-event": REF}))
RESPONSE = _object({"description": TEXT}, content=CONTENT, headers=_map(_object({"schema": SCHEMA}, description=TEXT)))
PARAMETER = _object(
    {"name": TEXT, "in": {"const": "path"}, "required": {"const": True}, "description": TEXT, "schema": SCHEMA}
)
OPERATION = _object(
    {
        "operationId": {"type": "string", "pattern": "^[A-Za-z_]+$"},
        "summary": TEXT,
        "tags": TEXTS,
        "responses": _map({"anyOf": [REF, RESPONSE]}, "^[2-5][0-9]{2}$"),
    },
    description=TEXT,
    security={"type": "array"},
    parameters={"type": "array", "items": PARAMETER},
    requestBody=_object({"required": {"const": True}, "content": CONTENT}),
)
DOCUMENT = _object(
    {
        "openapi": {"pattern": r"^3\.1\.\d+$"},
        "info": _object({"title": TEXT, "version": TEXT}, description=TEXT),
        "servers": {"type": "array", "items": _object({"url": TEXT})},
        "security": {"type": "array", "items": _map(TEXTS)},
        "paths": _map(_map(OPERATION, "^(get|post)$"), "^/"),
        "components": _object(
            {
                "schemas": _map(SCHEMA),
                "responses": _map(RESPONSE),
                "securitySchemes": _map(_object({"type": TEXT, "scheme": TEXT}, description=TEXT)),
            }
        ),
    }
)


def parts_of(value: Any) -> list[Json]:
    """Returns: every object within a document."""
    if isinstance(value, list):
        return [part for one in value for part in parts_of(one)]
    if isinstance(value, dict):
        return [value, *(part for one in value.values() for part in parts_of(one))]
    return []


def closed(document: Json, name: str) -> Json:
    """Returns: a schema of the document in which no object may have a key that is not told of."""
    schemas = {
        key: one | {"additionalProperties": False} if "properties" in one else one
        for key, one in document["components"]["schemas"].items()
    }
    return {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
