"""A schema is enforced, or refused by the name of what cannot be, and nothing in between."""

from __future__ import annotations

from typing import Any

import pytest

from shardnet.coordinator.structure.schemas import read_schema
from shardnet.errors import UsageError


def read(schema: Any) -> dict[str, Any]:
    return read_schema(schema, "response_format")


def test_what_is_enforced_stays_and_annotations_go() -> None:
    given = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Person",
        "type": "object",
        "properties": {"title": {"type": "string", "description": "of address", "minLength": 1, "x-order": 3}},
        "required": ["title"],
        "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
    }
    assert read(given) == {
        "type": "object",
        "properties": {"title": {"type": "string", "minLength": 1}},
        "required": ["title"],
        "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
    }


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "null"}}, "'not'"),
        ({"properties": {"a/b": {"if": {}}}}, "at /properties/a~1b/if"),
        ({"type": "array", "contains": {}}, "'contains'"),
        ({"uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "nullable": True}, "nullable"),
        ({"dependentRequired": {}}, "dependentRequired"),
        ({"unevaluatedProperties": False, "anyOf": [{}]}, "unevaluatedProperties"),
        ({"propertyNames": {"pattern": "a"}}, "propertyNames"),
        ({"minProperties": 2}, "minProperties"),
        ({"format": "credit-card"}, "'credit-card'"),
        ({"type": "integer", "format": "int32"}, "'int32'"),
        ({"type": "text"}, "type is one of"),
        ({"type": [["string"]]}, "type is one of"),
        ({"minimum": 2**53 + 2}, "minimum"),
        ({"minimum": True}, "minimum"),
        ({"maximum": float("nan")}, "maximum"),
        ({"multipleOf": 0}, "multipleOf"),
        ({"maxItems": -1}, "maxItems"),
        ({"maxLength": 2.5}, "maxLength"),
        ({"minItems": 5000}, "minItems"),
        ({"pattern": r"\bword"}, r"\\b"),
        ({"pattern": "(?=a)b"}, "(?=a"),
        ({"pattern": "(?i)a"}, "(?i)"),
        ({"pattern": "[a&&b]"}, "&&"),
        ({"pattern": r"\A"}, r"\\A"),
        ({"patternProperties": {"[[:alpha:]]": {}}}, "[:"),
        ({"const": "\x00"}, "U+0000"),
        ({"enum": [["\ud800"]]}, "U+D800"),
        ({"enum": []}, "enum"),
        ({"anyOf": []}, "anyOf"),
        ({"properties": []}, "properties"),
        ({"required": "a"}, "required"),
        ({"items": 3}, "a schema is an object"),
        ({"$ref": "https://example.com/a"}, "$ref"),
        ({"$ref": "#/$defs/none"}, "/$defs/none"),
        ({"$ref": "#"}, "endless"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "endless"),
        (False, "no document"),
        ([], "a schema is an object"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(schema)
    assert named in str(caught.value)
    assert str(caught.value).startswith("response_format")
    assert caught.value.facts["param"] == "response_format"


def test_references_of_every_form_become_one_form_and_may_be_recursive() -> None:
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/definitions/a~1b%25"}, {"type": "null"}]}}}
    made = read({"properties": {"x": {"$ref": "#/definitions/a~1b%25"}}, "definitions": {"a/b%": node}})
    assert made["properties"]["x"] == {"$ref": "#/$defs/0"}
    assert made["$defs"]["0"]["properties"]["next"]["anyOf"] == [{"$ref": "#/$defs/0"}, {"type": "null"}]
    anchored = read({"$ref": "#here", "$defs": {"A": {"$anchor": "here", "type": "string"}}})
    assert anchored == {"$ref": "#/$defs/0", "$defs": {"0": {"type": "string"}}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"type": "string"}, {"type": "null"}),
        ({"const": 1}, {"const": True}),
        ({"enum": ["a", "b"]}, {"const": "c"}),
        ({"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}),
        ({"allOf": [{"$ref": "#/$defs/Cat"}]}, {"anyOf": [{"$ref": "#/$defs/Dog"}, {"type": "array"}]}),
    ],
)
def test_one_of_options_that_exclude_each_other_is_any_of(one: Any, other: Any) -> None:
    def pet(kind: str) -> dict[str, Any]:
        return {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]}

    made = read({"oneOf": [one, other], "$defs": {"Cat": pet("cat"), "Dog": pet("dog")}})
    assert "oneOf" not in made
    assert len(made["anyOf"]) == 2


@pytest.mark.parametrize(
    "options",
    [
        [{"type": "integer"}, {"type": "number"}],
        [{"const": 1}, {"const": 1.0}],
        [
            {"type": "object", "properties": {"k": {"const": "a"}}},
            {"type": "object", "properties": {"k": {"const": "b"}}},
        ],
        [{"minimum": 3}, {"type": "string"}],
        [{}, {"type": "null"}],
    ],
)
def test_one_of_options_that_may_both_fit_stays_what_it_is(options: list[Any]) -> None:
    assert "oneOf" in read({"oneOf": options})


def test_rewordings_keep_the_meaning() -> None:
    listed = {"type": "object", "additionalProperties": {"type": "number"}, "propertyNames": {"enum": ["a", "b"]}}
    assert read(listed)["properties"] == {"a": {"type": "number"}, "b": {"type": "number"}}
    assert read(listed)["additionalProperties"] is False
    assert read({"properties": {}, "unevaluatedProperties": False}) == {"properties": {}, "additionalProperties": False}
    assert read({"items": [{"type": "null"}], "additionalItems": False}) == {
        "prefixItems": [{"type": "null"}],
        "items": False,
    }
    assert read({"required": ["a", "b"], "minProperties": 2.0}) == {"required": ["a", "b"]}
    assert read({"uniqueItems": False}) == {}
    most = 10**15 - 1
    assert read({"type": "integer", "minimum": 3}) == {"type": "integer", "minimum": 3, "maximum": most}
    assert read({"type": "integer", "exclusiveMaximum": 3}) == {
        "type": "integer",
        "exclusiveMaximum": 3,
        "minimum": -most,
    }
    assert read({"type": "integer", "minimum": 2**52}) == {"type": "integer", "minimum": 2**52}
    assert read({"type": "integer", "const": 10**16}) == {"type": "integer", "const": 10**16}
    assert read(True) == {}


def test_a_schema_that_is_too_deep_or_too_large_is_refused_at_once() -> None:
    deep: Any = {}
    for _ in range(400):
        deep = {"items": deep}
    with pytest.raises(UsageError, match="too large"):
        read(deep)
    with pytest.raises(UsageError, match="too large"):
        read({"anyOf": [{} for _ in range(6000)]})
