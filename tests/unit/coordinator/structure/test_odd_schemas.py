"""Whatever stands at any place of a schema, it is read, or refused in a sentence of ours."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from shardnet.coordinator.structure.grammars import schema_grammar
from shardnet.errors import UsageError
from tests.support.odd_requests import ODD, places, written

RICH: dict[str, Any] = {
    "$defs": {"leaf": {"type": ["integer", "null"], "minimum": 0, "maximum": 9}},
    "type": "object",
    "properties": {
        "a": {"$ref": "#/$defs/leaf"},
        "b": {"type": "string", "minLength": 1, "maxLength": 5, "pattern": "^a+$"},
        "c": {"type": "string", "format": "date"},
        "d": {
            "type": "array",
            "prefixItems": [{"const": 1}],
            "items": {"enum": ["x", 2, None]},
            "minItems": 1,
            "uniqueItems": False,
        },
        "e": {"oneOf": [{"type": "number", "multipleOf": 0.5}, {"type": "boolean"}]},
        "f": {"allOf": [{"type": "object", "maxProperties": 3}, {"minProperties": 1}]},
        "g": {"type": "object", "propertyNames": {"enum": ["x"]}, "unevaluatedProperties": False},
        "h": {
            "type": "object",
            "patternProperties": {"^x": {"type": "null"}},
            "additionalProperties": {"type": "integer"},
        },
        "i": {"items": [{"type": "null"}], "additionalItems": False},
    },
    "required": ["a"],
    "additionalProperties": False,
}


def read(schema: Any) -> str:
    """Returns: what is said of it; empty if it is read."""
    try:
        return schema_grammar(schema, "json_schema")[:0]
    except UsageError as error:
        return str(error)


# Longer numbers do not come this far: `bodies` refuses them.
@pytest.mark.parametrize("odd", [one for one in ODD if len(written(one)) < 4000], ids=lambda one: written(one)[:20])
def test_whatever_stands_anywhere_in_a_schema_is_read_or_refused_in_a_sentence(odd: Any) -> None:
    value = json.loads(written(odd))
    said = [read(value)]
    for place in places(RICH):
        schema = copy.deepcopy(RICH)
        at: Any = schema
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = value
        said.append(read(schema))
    assert any(said)
    assert all(one.startswith("json_schema: ") and len(one) < 700 for one in said if one)


def test_the_schema_itself_is_read() -> None:
    assert schema_grammar(RICH, "json_schema")
