"""Whether two schemas exclude one another, so that `oneOf` asks for nothing more than `anyOf`. Says so only where it is certain.

Knows schemas as `schemas.py` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shardnet.coordinator.structure.values import ALL_TYPES, Schema, same_value, types_of_value, values_of

MAX_DEPTH = 12
"""References and properties that are followed; deeper ones may be endless."""
MAX_COMPARED = 20_000
"""Pairs of schemas that are looked at, some 100 ms; what is not certain by then counts as possible."""


def all_disjoint(options: list[Schema | bool], defs: Mapping[str, Schema | bool]) -> bool:
    """Returns: True if no document fits two of the options.

    Args: defs: what `#/$defs/NAME` is.
    """
    search = _Search(defs)
    pairs = ((one, other) for index, one in enumerate(options) for other in options[index + 1 :])
    return all(search.are_disjoint(one, other, 0) for one, other in pairs)


class _Search:
    def __init__(self, defs: Mapping[str, Schema | bool]) -> None:
        self._defs = defs
        self._left = MAX_COMPARED

    def are_disjoint(self, one: Schema | bool, other: Schema | bool, depth: int) -> bool:
        self._left -= 1
        if one is False or other is False:
            return True
        if one is True or other is True or depth > MAX_DEPTH or self._left < 0:
            return False
        for choice, rest in ((one, other), (other, one)):
            options = choice.get("anyOf")
            if options and all(self.are_disjoint(option, rest, depth + 1) for option in options):
                return True
        ours, theirs = list(self._parts(one, depth)), list(self._parts(other, depth))
        return any(self._part_excludes(a, b, depth) for a in ours for b in theirs)

    def _parts(self, schema: Schema, depth: int) -> Iterator[Schema]:
        """Returns: schemas that a document has to fit all."""
        self._left -= 1
        yield schema
        if depth > MAX_DEPTH or self._left < 0:
            return
        found = [self._defs.get(schema["$ref"].removeprefix("#/$defs/"), True)] if "$ref" in schema else []
        for one in (*found, *schema.get("allOf", ())):
            if isinstance(one, dict):
                yield from self._parts(one, depth + 1)

    def _part_excludes(self, one: Schema, other: Schema, depth: int) -> bool:
        self._left -= 1
        common = _types(one) & _types(other)
        if not common:
            return True
        values, others = values_of(one), values_of(other)
        if values is not None and others is not None:
            self._left -= len(values) * len(others) // 8
            if self._left >= 0 and not any(same_value(a, b) for a in values for b in others):
                return True
        if common != {"object"}:
            return False
        mine, theirs = one.get("properties", {}), other.get("properties", {})
        for name in {*one.get("required", ()), *other.get("required", ())} & mine.keys() & theirs.keys():
            if self.are_disjoint(mine[name], theirs[name], depth + 1):
                return True
        return False


def _types(schema: Schema) -> set[str]:
    values = values_of(schema)
    if values is not None:
        return {kind for value in values for kind in types_of_value(value)}
    given = schema.get("type", sorted(ALL_TYPES))
    names = {given} if isinstance(given, str) else set(given)
    return names | ({"integer"} if "number" in names else set())
