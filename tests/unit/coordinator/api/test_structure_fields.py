"""What clients ask for, under the names that they know, is one grammar."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shardnet.coordinator.api.schemas import ChatRequest, CompletionRequest
from shardnet.coordinator.structure.grammars import HEAD, regex_grammar, schema_grammar
from shardnet.errors import UsageError

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
MESSAGES = [{"role": "user", "content": "hi"}]
PARSE = {"type": "json_schema", "json_schema": {"name": "A", "strict": True, "schema": SCHEMA}}
"""As `.parse` of the openai package sends it."""


def structure(**asked: Any) -> tuple[str | None, str]:
    chat = ChatRequest.model_validate({"messages": MESSAGES} | asked)
    completion = CompletionRequest.model_validate(asked)
    chat.check_supported()
    completion.check_supported()
    assert chat.sampling().grammar == completion.structure()
    return chat.structure(), chat.structure_field


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": PARSE},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": False}}},
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"json_schema": SCHEMA},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    ],
)
def test_a_schema_is_the_same_under_every_name(asked: dict[str, Any]) -> None:
    field = next(iter(asked))
    assert structure(**asked) == (schema_grammar(SCHEMA, field), field)


@pytest.mark.parametrize(
    ("asked", "grammar"),
    [
        ({"response_format": {"type": "json_object"}}, schema_grammar({"type": "object"}, "response_format")),
        ({"structured_outputs": {"json_object": True}}, schema_grammar({"type": "object"}, "structured_outputs")),
        ({"regex": "[a-z]+"}, regex_grammar("[a-z]+", "regex")),
        ({"structured_outputs": {"regex": "[a-z]+"}}, regex_grammar("[a-z]+", "regex")),
        ({"structured_outputs": {"choice": ["a", '"é\n']}}, HEAD + 'start: "a" | "\\"\\u00e9\\n"\n'),
        ({"grammar": "root ::= [a]"}, "root ::= [a]"),
        ({"structured_outputs": {"grammar": "root ::= [a]"}}, "root ::= [a]"),
        ({"grammar": "root ::= [a]", "response_format": {"type": "text"}}, "root ::= [a]"),
        ({"response_format": {"type": "text"}, "grammar": ""}, None),
        ({"structured_outputs": {}}, None),
        ({}, None),
    ],
)
def test_every_field_means_its_grammar(asked: dict[str, Any], grammar: str | None) -> None:
    assert structure(**asked)[0] == grammar


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"response_format": PARSE, "regex": "a"}, "regex"),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= [a]"}, "grammar"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"response_format": {"type": "json_schema"}}, "json_schema.schema is missing"),
        ({"response_format": {"type": "grammar"}}, "'grammar' is not supported"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"if": {}}}}}, "'if'"),
        ({"structured_outputs": {"choice": []}}, "choice"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "choice"),
        ({"structured_outputs": {"json": "{"}}, "neither a schema"),
        ({"regex": ""}, "empty"),
        ({"guided_json": SCHEMA}, "is called json_schema here"),
        ({"guided_choice": ["a"]}, "is called structured_outputs here"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        structure(**asked)
    assert named in str(caught.value)
    assert caught.value.facts["param"] in asked
