"""JSON values inside schemas: their types, when two are the same, and which ones an answer can spell."""

from __future__ import annotations

import math
from typing import Any

ALL_TYPES = frozenset(["null", "boolean", "integer", "number", "string", "array", "object"])

Schema = dict[str, Any]


def types_of_value(value: Any) -> set[str]:
    """Returns: the names that a schema's `type` may have for a value."""
    match value:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"integer", "number"} if value.is_integer() else {"number"}
        case str():
            return {"string"}
        case list():
            return {"array"}
        case _:
            return {"object"}


def same_value(one: Any, other: Any) -> bool:
    """Returns: True if JSON schema takes them for equal: 1 is 1.0, and is not true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_value(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    return (
        type(one) is type(other) and one == other if isinstance(one, bool) or isinstance(other, bool) else one == other
    )


def values_of(schema: Schema) -> list[Any] | None:
    """Returns: the only values that a schema permits, if it lists them."""
    return [schema["const"]] if "const" in schema else schema.get("enum")


def unspeakable(value: Any) -> str | None:
    r"""Returns: what in a value cannot be written in an answer, or None.

    Answers have no `\u` escapes: a name that is spelled with one would pass for another name. So control characters other than
    `\b`, `\f`, `\n`, `\r`, `\t` are never in them.
    """
    match value:
        case str():
            bad = next((one for one in value if _is_unspeakable(one)), None)
            return None if bad is None else f"the character U+{ord(bad):04X}"
        case float() if not math.isfinite(value):
            return "a number that JSON does not have"
        case list():
            return next(filter(None, map(unspeakable, value)), None)
        case dict():
            return next(filter(None, map(unspeakable, [*value, *value.values()])), None)
        case _:
            return None


def _is_unspeakable(char: str) -> bool:
    return (char < " " and char not in "\b\f\n\r\t") or char == "\x7f" or "\ud800" <= char <= "\udfff"
