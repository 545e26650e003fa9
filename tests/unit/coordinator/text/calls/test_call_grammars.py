"""What a grammar of calls permits, the reader of the same format finds; what it must not permit, it does not."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from typing import Any

import pytest

from shardnet.coordinator.structure.grammars import HEAD, json_rule
from shardnet.coordinator.text.calls.answer import AnswerFormat, Thinking
from shardnet.coordinator.text.calls.grammars import MOST_CALLS, behind_reasoning, calls_grammar
from shardnet.coordinator.text.calls.known import KNOWN, SPOKEN, THINKING
from shardnet.coordinator.text.calls.nested_tags import NestedTags
from shardnet.errors import UsageError
from tests.support.byte_grammars import ByteVocabulary
from tests.support.written_calls import TOOLS, WRITTEN, read

FORMATS = {one.name: AnswerFormat(one.name, one.calls) for one in KNOWN} | {
    "harmony": AnswerFormat("harmony", harmony=True),
    "spoken": AnswerFormat("spoken", SPOKEN),
}
NARROW = {
    "type": "object",
    "properties": {"city": {"enum": ["Rom", "Bonn"]}, "days": {"enum": [1, 27]}, "of": {"enum": [[1], [2, 3]]}},
    "required": ["city", "of"],
    "additionalProperties": False,
}
PLAIN = ByteVocabulary()


def rule(_name: str, schema: Mapping[str, Any], loosely: Mapping[str, Any]) -> str:
    try:
        return json_rule(schema, "tools")
    except UsageError:
        return json_rule(loosely, "tools")


def grammar(
    format: AnswerFormat,
    functions: Sequence[tuple[str, Mapping[str, Any]]] = (
        ("weather", NARROW),
        ("now", {"type": "object", "additionalProperties": False}),
    ),
    vocabulary: ByteVocabulary = PLAIN,
    *,
    required: bool = True,
    parallel: bool = True,
    thinks: bool = False,
    strict: Container[str] = (),
) -> str:
    return HEAD + calls_grammar(
        format, functions, rule, vocabulary.control, required=required, parallel=parallel, thinks=thinks, strict=strict
    )


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "harmony"])
@pytest.mark.parametrize("as_control", [False, True])
def test_what_the_grammar_permits_is_read_as_calls(name: str, as_control: bool) -> None:
    format = FORMATS[name]
    marks = {mark for pair in format.calls.marks.items() for mark in pair if mark} if format.calls else set()
    vocabulary = ByteVocabulary(sorted(marks)) if as_control else PLAIN
    functions = (("weather", NARROW), ("now", {"type": "object", "additionalProperties": False}))
    for seed in range(3):
        pieces = vocabulary.walk(grammar(format, functions, vocabulary), seed)
        found = read(format, pieces, tools=dict(functions), control=list(vocabulary.control))
        assert found.done == len(found.calls) >= 1, pieces
        assert (found.content, found.broken) == ("", []), pieces
        for called, arguments in zip(found.calls, found.arguments, strict=True):
            if called[0] == "weather":
                assert arguments["city"] in ("Rom", "Bonn")
                assert arguments["of"] in ([1], [2, 3])
                assert arguments.get("days", 1) in (1, 27)
            else:
                assert (called[0], arguments) == ("now", {})


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "harmony"])
def test_a_long_name_is_called_and_read(name: str) -> None:
    long = "mcp__" + 123 * "s"
    functions = ((long, {"type": "object", "additionalProperties": False}),)
    pieces = PLAIN.walk(grammar(FORMATS[name], functions, parallel=False), 1)
    assert [called[0] for called in read(FORMATS[name], pieces, tools=dict(functions)).calls] == [long]


URI = {"type": "string", "format": "uri-reference"}


@pytest.mark.parametrize(
    ("schema", "value", "others"),
    [
        ({"type": "integer", "format": "int32"}, "3", ("{}", '"x"')),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, '["x"]', ("{}", "3")),
        ({"type": "boolean", "nullable": True}, "true", ("{}", "3")),
        ({"anyOf": [URI, {"type": "null"}]}, "null", ("{}", "3")),
        ({"not": {}}, "[1]", ()),
    ],
)
def test_an_argument_whose_schema_cannot_be_enforced_is_held_to_its_types(
    schema: dict[str, Any], value: str, others: Sequence[str]
) -> None:
    tool = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    text = grammar(FORMATS["qwen3 coder"], (("f", tool),), parallel=False)

    def call(argument: str) -> str:
        return f"<tool_call>\n<function=f>\n<parameter=a>\n{argument}\n</parameter>\n</function>\n</tool_call>"

    assert PLAIN.accepts(text, call(value))
    assert read(FORMATS["qwen3 coder"], [call(value)], tools={"f": tool}).arguments == [{"a": json.loads(value)}]
    assert not [other for other in others if PLAIN.accepts(text, call(other))]


def test_required_that_is_no_list_is_refused_for_a_strict_function_alone() -> None:
    tool = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": True}
    assert grammar(FORMATS["qwen3 coder"], (("f", tool),))
    with pytest.raises(UsageError, match="function f: required"):
        grammar(FORMATS["qwen3 coder"], (("f", tool),), strict={"f"})


@pytest.mark.parametrize("name", ["hermes", "qwen3 coder", "glm", "mistral", "llama", "kimi"])
def test_a_required_call_cannot_be_left_out_and_one_is_one(name: str) -> None:
    vocabulary, text = PLAIN, grammar(FORMATS[name], parallel=False)
    assert not vocabulary.accepts(text, "Hello")
    assert not vocabulary.accepts(text, "")
    for seed in range(3):
        found = read(FORMATS[name], vocabulary.walk(text, seed), tools={"weather": NARROW, "now": {}})
        assert found.done == 1


@pytest.mark.parametrize(
    "name", [name for name in WRITTEN if name in FORMATS and name not in ("llama", "harmony", "gemma", "python")]
)
def test_a_free_answer_may_call_and_every_call_is_held_to_its_schema(name: str) -> None:
    wide = tuple(TOOLS.items())
    free = grammar(FORMATS[name], wide, required=False)
    mark = next(iter(FORMATS[name].calls.marks))  # type: ignore[union-attr]
    assert PLAIN.accepts(free, "Hello, just text.")
    assert PLAIN.accepts(free, "Hello\n\n" + mark[:-1])
    assert not PLAIN.accepts(free, f"Hello {mark} x")
    wrong = WRITTEN[name].replace("weather", "wether")
    assert not PLAIN.accepts(free, wrong)
    assert not PLAIN.accepts(free, "Let me see. " + wrong)


@pytest.mark.parametrize("name", ["hermes", "llama"])
def test_a_free_answer_that_begins_like_a_call_without_a_mark_is_one(name: str) -> None:
    free = grammar(FORMATS[name], (("now", {"type": "object", "additionalProperties": False}),), required=False)
    call = f'{{"name": "now", "{FORMATS[name].calls.arguments_key}": {{}}}}'  # type: ignore[union-attr]
    for text in (call, f"```json\n{call}\n```", "```python\nx = 1\n```", "A {} in a text.", "\n\n"):
        assert PLAIN.accepts(free, text)
    for text in ('{"a": 1}', "```json\n{}\n```", '{"name": "now"}', f" {call}", "{"):
        assert not PLAIN.accepts(free, text)
    assert read(FORMATS[name], [call], tools={"now": {}}).done == 1


def test_a_mark_that_is_a_control_token_cannot_be_spelled_around_it() -> None:
    vocabulary = ByteVocabulary(["<tool_call>", "</tool_call>"])
    free = grammar(FORMATS["hermes"], tuple(TOOLS.items()), vocabulary, required=False)
    assert vocabulary.accepts(free, "Just text.")
    assert not vocabulary.accepts(free, "A spelled <tool_call>")


def test_a_free_answer_of_hermes_holds_calls_between_texts() -> None:
    free = grammar(FORMATS["hermes"], tuple(TOOLS.items()), required=False)
    assert PLAIN.accepts(free, "Let me see.\n" + WRITTEN["hermes"])
    assert PLAIN.accepts(free, "Let me see.\n" + WRITTEN["hermes"] + "\nSo.")


def test_harmony_calls_at_the_end_of_its_messages() -> None:
    format, functions = FORMATS["harmony"], tuple(TOOLS.items())
    call = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rom"}'
    thoughts = "<|channel|>analysis<|message|>Well.<|end|><|start|>assistant"
    for text in (call, thoughts + call):
        assert PLAIN.accepts(grammar(format, functions), text)
        assert PLAIN.accepts(grammar(format, functions, required=False), text)
    final = thoughts + "<|channel|>final<|message|>Hello."
    assert not PLAIN.accepts(grammar(format, functions), final)
    assert PLAIN.accepts(grammar(format, functions, required=False), final)
    assert PLAIN.accepts(grammar(format, functions, thinks=True), "Well.<|end|><|start|>assistant" + call)
    marks = ByteVocabulary(["<|channel|>", "<|message|>", "<|constrain|>", "<|start|>", "<|end|>"])
    assert "<[256]>" in grammar(format, functions, marks)


def test_reasoning_comes_first_where_the_model_reasons() -> None:
    format = AnswerFormat("f", FORMATS["hermes"].calls, Thinking(THINKING[:1]))
    call = WRITTEN["hermes"].split("\n<tool_call>")[0]
    tools = tuple(TOOLS.items())
    assert PLAIN.accepts(grammar(format, tools), "<think>\nWell, <tool_call> may do.\n</think>\n\n" + call)
    assert PLAIN.accepts(grammar(format, tools), call)
    begun = grammar(format, tools, thinks=True)
    assert PLAIN.accepts(begun, "Well.\n</think>\n\n" + call)
    assert not PLAIN.accepts(begun, call)


def test_a_structure_begins_behind_the_reasoning_that_the_prompt_opened() -> None:
    format = AnswerFormat("f", None, Thinking(THINKING[:1]))
    structure = f"{HEAD}start: {json_rule({'type': 'object', 'additionalProperties': False}, 'x')}\n"
    behind = behind_reasoning(structure, format, {})
    assert PLAIN.accepts(behind, "Hm {.\n</think>\n\n{}")
    assert not PLAIN.accepts(behind, "{}")


def test_texts_between_tags_are_as_long_as_the_schema_says() -> None:
    functions = (("f", {"properties": {"s": {"type": "string", "minLength": 2, "maxLength": 3}}, "required": ["s"]}),)
    text = grammar(FORMATS["qwen3 coder"], functions, parallel=False)
    for value, fits in (("ab", True), ("a\nb", True), ("a", False), ("abcd", False)):
        call = f"<tool_call>\n<function=f>\n<parameter=s>\n{value}\n</parameter>\n</function>\n</tool_call>"
        assert PLAIN.accepts(text, call) is fits


def test_tags_within_tags_are_held_to_the_schema_all_the_way_down() -> None:
    inner = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    functions = (("f", {"properties": {"l": {"type": "array", "items": inner, "minItems": 1, "maxItems": 2}}}),)
    calls = FORMATS["minimax m3"].calls
    assert isinstance(calls, NestedTags)
    text = grammar(FORMATS["minimax m3"], functions, parallel=False, strict={"f"})
    [(section, close)] = calls.marks.items()
    for given, fits in (
        ({"l": [{"n": 1}]}, True),
        ({"l": [{"n": 1}, {"n": 22}]}, True),
        ({}, True),
        ({"l": []}, False),
        ({"l": [{"n": "x"}]}, False),
        ({"l": [{"n": 1}] * 3}, False),
        ({"l": [{}]}, False),
        ({"m": 1}, False),
    ):
        written = f'{section}\n{calls.begin}f">{calls.written(given)}{calls.mark}</invoke>\n{close}'
        assert PLAIN.accepts(text, written) is fits, given
    for schema in ({"type": ["integer", "null"]}, {"type": "object"}, {"type": "array"}):
        with pytest.raises(UsageError, match="properties/x"):
            grammar(FORMATS["minimax m3"], (("f", {"properties": {"x": schema}}),), strict={"f"})
        assert grammar(FORMATS["minimax m3"], (("f", {"properties": {"x": schema}}),))


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"anyOf": [{"type": "object"}]}, "anyOf"),
        ({"properties": {"s": {"type": "string", "pattern": "a+"}}}, "pattern"),
        ({"properties": {}, "required": ["s"]}, "required"),
    ],
)
def test_what_tags_cannot_be_held_to_is_refused_by_name(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        grammar(FORMATS["qwen3 coder"], (("f", schema),), strict={"f"})
    assert PLAIN.walk(grammar(FORMATS["qwen3 coder"], (("f", {**schema, "properties": {}}),), parallel=False), 0)


def test_an_answer_that_must_call_has_an_end() -> None:
    text = grammar(FORMATS["hermes"], (("now", {"type": "object", "additionalProperties": False}),))
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert PLAIN.accepts(text, "\n".join([call] * MOST_CALLS))
    assert not PLAIN.accepts(text, "\n".join([call] * (MOST_CALLS + 1)))
