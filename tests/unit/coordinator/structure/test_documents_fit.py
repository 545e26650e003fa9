"""Whatever is drawn by a schema's grammar, at temperature 2, fits the schema; what the standard's own cases call invalid is not permitted."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings

from shardnet.coordinator.structure.grammars import schema_grammar
from shardnet.errors import UsageError
from shardnet.inference.llama.lark import LarkGrammar, TokenTable, byte_table
from tests.support.random_schemas import random_document, schemas

TABLE = byte_table()


def permits(schema: Any, text: str, table: TokenTable = TABLE) -> bool:
    grammar = LarkGrammar(table, schema_grammar(schema, "x"))
    followed: list[int] = []
    for byte in text.encode():
        if not grammar.permits(byte):
            return False
        followed.append(byte)
        grammar.follow(followed)
    return any(grammar.permits(end) for end in table.ends)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas())
def test_every_document_that_is_drawn_fits(schema: dict[str, Any]) -> None:
    try:
        grammar = LarkGrammar(TABLE, schema_grammar(schema, "x"))
    except UsageError:
        return
    document = random_document(grammar, TABLE, seed=1, most=200)
    if document is not None and not re.search(rb"[eE]\+?\d{3}", document):  # the validator fails at 1e999
        jsonschema.Draft202012Validator(schema).validate(json.loads(document))


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("{}", True),
        ('{ "a" : 1 }', True),
        ('{\n    "a": 1,\n    "b": [\n        2\n    ]\n}', True),
        ('{  "a": 1}', False),
        ("{\n" + " " * 20 + "}", True),
        ("{\n" + " " * 21 + "}", False),
        ("{\n\n}", False),
        (" {}", False),
        ("{}\n", False),
    ],
)
def test_white_space_is_bounded(text: str, fits: bool) -> None:
    assert permits({"type": "object"}, text) is fits


def test_a_name_cannot_be_spelled_by_an_escape_to_pass_for_another() -> None:
    schema = {"properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}}
    assert permits(schema, '{"a":"x"}')
    assert permits(schema, '{"b":1}')
    assert not permits(schema, '{"a":1}')
    assert not permits(schema, '{"\\u0061":1}')


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"format": "date"}, '"2026-11-29"', '"29.11.2026"'),
        ({"format": "uuid"}, '"2eb8aa08-aa98-11ea-b4aa-73b441d16380"', '"2eb8"'),
        ({"pattern": r"^\d+$"}, '"12"', '"١٢"'),
        ({"pattern": "^a$"}, '"a"', '"a\\n"'),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", "1"),
        ({"exclusiveMinimum": 0, "type": "number"}, "0.5", "0"),
        ({"enum": ["a", 1]}, "1", "true"),
        ({"maxLength": 2}, '"é😀"', '"éab"'),
    ],
)
def test_what_does_not_fit_is_not_permitted(schema: dict[str, Any], good: str, bad: str) -> None:
    assert permits(schema, good)
    assert not permits(schema, bad)


@pytest.mark.parametrize(
    ("format_", "good", "bad"),
    [
        ("date", ["2024-02-29", "2000-02-29", "0001-01-31"], ["2023-02-29", "1900-02-29", "2024-04-31", "0000-01-01"]),
        ("time", ["23:59:59Z", "00:00:00.123+01:30"], ["24:00:00Z", "23:59:60Z", "12:00:00", "12:00:00+25:00"]),
        ("date-time", ["2024-02-29T12:00:00z"], ["2023-02-29T12:00:00Z", "2024-02-29 12:00:00Z"]),
    ],
)
def test_dates_know_the_calendar(format_: str, good: list[str], bad: list[str]) -> None:
    for pattern in ({}, {"pattern": "[0-9]"}):
        schema = {"type": "string", "format": format_} | pattern
        assert all(permits(schema, f'"{one}"') for one in good)
        assert not any(permits(schema, f'"{one}"') for one in bad)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^\s$", ["\u00a0", "\ufeff"], ["\u0085", "a"]),
        (r"^\S$", ["\u0085", "a"], ["\u00a0", "\ufeff"]),
        (r"^[x\s]$", ["x", "\u2003"], ["y"]),
        (r"^[^\S]$", [" "], ["x"]),
        (r"^\d[\w-]\W\D$", ["1-éx"], ["١-éx", "1éé1", "1--1"]),
    ],
)
def test_classes_in_patterns_are_those_of_ecma_262(pattern: str, good: list[str], bad: list[str]) -> None:
    assert all(permits({"pattern": pattern}, f'"{one}"') for one in good)
    assert not any(permits({"pattern": pattern}, f'"{one}"') for one in bad)
