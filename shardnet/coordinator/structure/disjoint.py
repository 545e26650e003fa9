"""Whether two schemas exclude one another, so that `oneOf` asks for nothing more than `anyOf`. Says so only where it is certain.

Knows schemas as `schemas.py` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shardnet.coordinator.structure.values import ALL_TYPES, Schema, same_value, types_of_value, values_of

MAX_STEPS = 12
"""References and properties that are followed; deeper ones may be endless."""


def are_disjoint(one: Schema | bool, other: Schema | bool, defs: Mapping[str, Schema | bool], steps: int = 0) -> bool:
    """Returns: True if no document fits both.

    Args: defs: what `#/$defs/NAME` is.
    """
    if one is False or other is False:
        return True
    if one is True or other is True or steps > MAX_STEPS:
        return False
    for choice, rest in ((one, other), (other, one)):
        options = choice.get("anyOf")
        if options and all(are_disjoint(option, rest, defs, steps + 1) for option in options):
            return True
    ours, theirs = list(_parts(one, defs, steps)), list(_parts(other, defs, steps))
    return any(_part_excludes(a, b, defs, steps) for a in ours for b in theirs)


def _parts(schema: Schema, defs: Mapping[str, Schema | bool], steps: int) -> Iterator[Schema]:
    """Returns: schemas that a document has to fit all."""
    yield schema
    if steps > MAX_STEPS:
        return
    found = [defs.get(schema["$ref"].removeprefix("#/$defs/"), True)] if "$ref" in schema else []
    for one in (*found, *schema.get("allOf", ())):
        if isinstance(one, dict):
            yield from _parts(one, defs, steps + 1)


def _part_excludes(one: Schema, other: Schema, defs: Mapping[str, Schema | bool], steps: int) -> bool:
    common = _types(one) & _types(other)
    if not common:
        return True
    values, others = values_of(one), values_of(other)
    if values is not None and others is not None and not any(same_value(a, b) for a in values for b in others):
        return True
    if common != {"object"}:
        return False
    mine, theirs = one.get("properties", {}), other.get("properties", {})
    for name in {*one.get("required", ()), *other.get("required", ())} & mine.keys() & theirs.keys():
        if are_disjoint(mine[name], theirs[name], defs, steps + 1):
            return True
    return False


def _types(schema: Schema) -> set[str]:
    values = values_of(schema)
    if values is not None:
        return {kind for value in values for kind in types_of_value(value)}
    given = schema.get("type", sorted(ALL_TYPES))
    names = {given} if isinstance(given, str) else set(given)
    return names | ({"integer"} if "number" in names else set())
