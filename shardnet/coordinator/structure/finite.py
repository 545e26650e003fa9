"""Whether only endless documents fit a schema: an object that requires an object of its own kind, and so on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardnet.coordinator.structure.values import Schema


def without_end(schema: Schema, defs: Mapping[str, Schema | bool]) -> bool:
    """Returns: True if every document that fits would be endless. Knows schemas as `schemas.py` writes them."""
    ends: set[str] = set()
    while True:
        found = {name for name, one in defs.items() if name not in ends and _may_end(one, ends)}
        if not found:
            return not _may_end(schema, ends)
        ends |= found


def _may_end(schema: Any, ends: set[str]) -> bool:
    """Returns: False only if a document that fits needs one that fits a schema which is not known to end."""
    if isinstance(schema, bool):
        return True
    if "$ref" in schema and schema["$ref"].removeprefix("#/$defs/") not in ends:
        return False
    if not all(_may_end(one, ends) for one in schema.get("allOf", ())):
        return False
    for choice in ("anyOf", "oneOf"):
        if choice in schema and not any(_may_end(one, ends) for one in schema[choice]):
            return False
    if schema.get("type") == "object":
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
        return all(_may_end(properties.get(name, rest), ends) for name in schema.get("required", ()))
    if schema.get("type") == "array":
        before, least = schema.get("prefixItems", []), schema.get("minItems", 0)
        needed = [*before[:least], *([schema.get("items", True)] if least > len(before) else [])]
        return all(_may_end(one, ends) for one in needed)
    return True
