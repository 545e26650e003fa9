"""A schema or a regular expression as a grammar."""

from __future__ import annotations

import json

import pytest

from shardnet.coordinator.structure.grammars import HEAD, json_rule, regex_grammar, schema_grammar
from shardnet.errors import UsageError
from shardnet.messages import MAX_GRAMMAR


def test_a_schema_is_a_rule_of_its_own_or_a_whole_grammar_with_bounded_white_space() -> None:
    rule = json_rule({"type": "string", "title": "gone"}, "tools")
    assert rule.startswith("%json {")
    assert "\n" not in rule
    read = json.loads(rule.removeprefix("%json "))
    assert read.pop("x-guidance")["whitespace_pattern"] == r" |\n[ \t]{0,20}"
    assert read == {"type": "string"}
    assert schema_grammar({"type": "string"}, "response_format") == f"{HEAD}start: {rule}\n"


def test_a_regular_expression_is_quoted_as_lark_wants_it() -> None:
    assert regex_grammar("a/b\\/c\nd\\\\/", "regex") == f"{HEAD}start: /a\\/b\\/c\\nd\\\\\\//\n"


@pytest.mark.parametrize("pattern", ["", "(?=a)", "a" * 5000, r"\1"])
def test_a_regular_expression_that_cannot_be_enforced_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match=r"^regex: ") as caught:
        regex_grammar(pattern, "regex")
    assert caught.value.facts["param"] == "regex"


def test_a_grammar_that_is_too_long_to_travel_is_refused() -> None:
    with pytest.raises(UsageError, match=str(MAX_GRAMMAR)):
        schema_grammar({"enum": ["x" * 100] * 1000}, "response_format")
