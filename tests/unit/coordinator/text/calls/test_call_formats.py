"""Every format: its calls are found however the text is cut, what is no call stays content, and nothing is lost."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardnet.coordinator.text.calls.known import KNOWN
from shardnet.coordinator.text.calls.nested_tags import NestedTags
from tests.support.written_calls import BEFORE, FORMATS, PARIS, TOOLS, WRITTEN, put_together, read

EXAMPLES = settings(max_examples=25, deadline=None)
MARKS = sorted({mark for one in KNOWN for pair in one.calls.marks.items() for mark in pair if mark} - {"```"})


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[first:last] for first, last in itertools.pairwise(edges)]


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_are_found_with_their_arguments(name: str) -> None:
    found = read(FORMATS[name], [BEFORE.get(name, "") + WRITTEN[name]])
    assert found.arguments == ([PARIS] if name == "generic" else [PARIS, {}])
    assert [one for one, _ in found.calls] == (["weather"] if name == "generic" else ["weather", "now"])
    assert found.content == ("Let me see." if name in BEFORE else "")
    assert found.done == found.names_told == len(found.calls)
    assert not found.broken


@pytest.mark.parametrize("name", WRITTEN)
def test_where_the_text_is_cut_changes_nothing(name: str) -> None:
    text = BEFORE.get(name, "") + WRITTEN[name]
    whole = read(FORMATS[name], [text])
    assert read(FORMATS[name], list(text)) == whole
    places = {
        at + end
        for mark in MARKS
        for at in (one.start() for one in re.finditer(re.escape(mark), text))
        for end in range(len(mark) + 1)
    }
    for at in sorted(places | set(range(1, len(text), 9))):
        assert read(FORMATS[name], [text[:at], text[at:]]) == whole


@pytest.mark.parametrize("name", WRITTEN)
@EXAMPLES
@given(data=st.data())
def test_damaged_calls_are_the_same_however_they_are_cut_and_nothing_is_lost(name: str, data: Any) -> None:
    text = BEFORE.get(name, "") + WRITTEN[name]
    at = data.draw(st.integers(0, len(text) - 1))
    wrong = (
        text[:at]
        + data.draw(st.sampled_from(["", "{", "}", '"', "<", "x", "\n", *MARKS]))
        + text[at + data.draw(st.integers(0, 9)) :]
    )
    whole = read(FORMATS[name], [wrong])
    assert read(FORMATS[name], cut(wrong, data.draw(st.lists(st.integers(0, 2000), max_size=12)))) == whole
    if not whole.done and not whole.broken and name != "harmony":
        assert re.sub(r"\s", "", whole.content + whole.reasoning) == re.sub(r"\s", "", wrong)
    for _, arguments in whole.calls[: whole.done] if not whole.broken else ():
        assert arguments.startswith("{")


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "generic"])
@EXAMPLES
@given(other=st.sampled_from(sorted(WRITTEN)))
def test_the_marks_of_another_format_stay_content(name: str, other: str) -> None:
    own = FORMATS[name].calls
    quoted = f"One writes `{WRITTEN[other]}` there."
    if name == "harmony" or other == "harmony" or any(mark in quoted for mark in (own.marks if own else ())):
        return
    found = read(FORMATS[name], list(quoted))
    assert (found.content, found.calls) == (quoted, [])


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in ("harmony", "llama", "generic")])
def test_a_mark_that_is_only_spoken_of_is_content_at_once(name: str) -> None:
    mark = next(iter(FORMATS[name].calls.marks))  # type: ignore[union-attr]
    text = f"It writes `{mark}` and then more, ~ and so on."
    found = read(FORMATS[name], [text])
    assert (found.content, found.calls, found.broken) == (text, [], [])


@pytest.mark.parametrize("name", WRITTEN)
def test_without_tools_calls_are_content(name: str) -> None:
    found = read(FORMATS[name], [WRITTEN[name]], tools=None)
    assert not found.calls
    if name != "harmony":
        assert found.content == WRITTEN[name]


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in ("llama", "generic")])
def test_marks_that_are_control_tokens_are_read_and_never_shown(name: str) -> None:
    text = BEFORE.get(name, "") + WRITTEN[name]
    marks = sorted(
        {*MARKS, "<|end|>", "<|start|>", "<|channel|>", "<|message|>", "<|call|>", "<|constrain|>"},
        key=len,
        reverse=True,
    )
    pieces = [piece for piece in re.split(f"({'|'.join(map(re.escape, marks))})", text) if piece]
    found = read(FORMATS[name], [*pieces, "<|im_end|>"], control=[*marks, "<|im_end|>"])
    assert found.arguments == [PARIS, {}]
    assert found.content == "Let me see."


def test_a_name_that_was_not_offered_is_no_call_where_no_mark_says_so() -> None:
    text = '{"name": "Ann", "parameters": {"age": 7}}'
    assert read(FORMATS["llama"], list(text)).content == text
    assert read(FORMATS["llama"], ["<|python_tag|>" + text]).calls == [("Ann", '{"age": 7}')]


def test_calls_without_a_mark_may_follow_each_other_and_what_is_none_stays_content() -> None:
    call, other = '{"name": "now", "arguments": {}}', '{"name": "Ann", "age": 7}'
    for text, done, content in (
        (f"{call}\n{call}\n{call}", 3, ""),
        (f"{call}\n{other}", 1, other),
        (f"{call}\nSo {call}", 1, f"So {call}"),
        (f"{call}\n{call[:20]}", 1, call[:20]),
    ):
        found = read(FORMATS["hermes"], list(text))
        assert (found.done, found.content, found.broken) == (done, content, [])


def test_arguments_that_break_off_end_the_call_and_its_text_is_content() -> None:
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": "Par'
    found = read(FORMATS["hermes"], list(text))
    assert (found.done, found.broken) == (0, [text])


def test_raw_line_breaks_in_a_string_are_escaped() -> None:
    found = read(FORMATS["hermes"], ['<tool_call>{"name": "weather", "arguments": {"city": "a\n\tb"}}</tool_call>'])
    assert found.arguments == [{"city": "a\n\tb"}]


def test_values_of_tags_are_what_the_schema_says() -> None:
    values = {"s": "12", "n": "12", "b": "True", "o": "{'a': None}", "m": "null", "x": "two\nlines"}
    written = "".join(f"<parameter={key}>\n{one}\n</parameter>\n" for key, one in values.items())
    text = f"<tool_call>\n<function=f>\n{written}</function>\n</tool_call>"
    kinds = {"s": "string", "n": "number", "b": "boolean", "o": "object", "m": ["string", "null"]}
    schema = {"properties": {key: {"type": kind} for key, kind in kinds.items()}}
    found = read(FORMATS["qwen3 coder"], list(text), tools={"f": schema})
    assert found.arguments == [{"s": "12", "n": 12, "b": True, "o": {"a": None}, "m": None, "x": "two\nlines"}]


NESTED = {
    "properties": {
        "who": {
            "type": "object",
            "properties": {"item": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array"}},
        },
        "stops": {"type": "array", "items": {"type": "object", "properties": {"at": {"type": "string"}}}},
        "none": {"type": "array"},
        "text": {"type": "string"},
    }
}


def test_tags_within_tags_are_objects_and_lists_as_the_schema_says() -> None:
    value = {
        "who": {"item": "7", "age": 7, "tags": ["1 a", 2]},
        "stops": [{"at": "1"}, {"at": ""}],
        "none": [],
        "text": "",
    }
    calls = FORMATS["minimax m3"].calls
    assert isinstance(calls, NestedTags)
    [(section, close)] = calls.marks.items()
    text = f'{section}{calls.begin}f">{calls.written(value)}{calls.mark}</invoke>{close}'
    assert read(FORMATS["minimax m3"], list(text), tools={"f": NESTED}).arguments == [value]
    assert read(FORMATS["minimax m3"], [text]).arguments[0]["stops"] == [{"at": 1}, {"at": ""}]  # of no known function
    for wrong in ("<who>x]<]minimax[>[<a>1]<]minimax[>[</a>]<]minimax[>[</who>", "<who>1]<]minimax[>[</whom>"):
        broken = f'{section}{calls.begin}f">{calls.mark}{wrong}{calls.mark}</invoke>{close}'
        assert read(FORMATS["minimax m3"], list(broken), tools={"f": NESTED}).done == 0


def test_names_of_arguments_that_were_escaped_are_as_they_were_offered() -> None:
    text = WRITTEN["kimi k3"].replace('key="city"', 'key="a &quot;&amp;quot;"')
    assert list(read(FORMATS["kimi k3"], list(text)).arguments[0]) == ['a "&quot;', "days", "tags"]


def test_arguments_that_are_a_text_or_null_become_an_object() -> None:
    for given_text, wanted in (('"{\\"city\\": \\"Rom\\"}"', {"city": "Rom"}), ("null", {}), ('""', {})):
        found = read(FORMATS["hermes"], [f'<tool_call>{{"name": "weather", "arguments": {given_text}}}</tool_call>'])
        assert found.arguments == [wanted]


def test_nothing_comes_of_nothing() -> None:
    for format in FORMATS.values():
        assert put_together([]) == read(format, [])
        assert read(format, ["  \n"], tools=TOOLS).content in ("", "  \n")
