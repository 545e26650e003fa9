"""Tools in words, for templates that show none."""

from __future__ import annotations

from typing import Any

from shardnet.coordinator.text.spoken_tools import with_tools_told

TOOL = {"type": "function", "function": {"name": "weather"}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rom"}'}}
ASKED = {"role": "user", "content": "Well?"}


def test_tools_are_told_in_the_system_text() -> None:
    told = with_tools_told([{"role": "system", "content": "Be brief."}, ASKED], [TOOL], in_words=True)
    assert [one["role"] for one in told] == ["system", "user"]
    assert told[0]["content"].startswith("Be brief.\n\n")
    assert '{"type": "function", "function": {"name": "weather"}}' in told[0]["content"]
    assert [one["role"] for one in with_tools_told([ASKED], [TOOL], in_words=True)] == ["system", "user"]


def test_calls_and_results_are_texts_and_results_of_one_turn_are_one() -> None:
    messages: list[dict[str, Any]] = [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "7 C"},
        {"role": "tool", "content": "8 C"},
        {"role": "assistant", "content": "It is."},
    ]
    told = with_tools_told(messages, [TOOL], in_words=True)
    assert [one["role"] for one in told] == ["system", "user", "assistant", "user", "assistant"]
    assert told[2]["content"].count('<tool_call>\n{"name": "weather", "arguments": {"city": "Rom"}}\n</tool_call>') == 2
    assert told[3]["content"] == "<tool_response>\n7 C\n</tool_response>\n<tool_response>\n8 C\n</tool_response>"


def test_a_template_that_writes_calls_keeps_them() -> None:
    call = {"role": "assistant", "tool_calls": [CALL]}
    told = with_tools_told([ASKED, call], [TOOL], in_words=False)
    assert told[1:] == [ASKED, call]
    assert "<tool_call>" not in told[0]["content"]
