"""What a request asks of tools, and how calls are worded."""

from __future__ import annotations

from typing import Any

import pytest

from shardnet.coordinator.api.messages import delta_of, message_of
from shardnet.coordinator.api.tools import tools_asked
from shardnet.coordinator.text.calls.events import (
    CallArguments,
    CallBegun,
    CallBroken,
    CallDone,
    Content,
    Event,
    Reasoning,
)
from shardnet.errors import UsageError


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def test_a_named_function_is_the_only_one_that_may_be_called() -> None:
    named = {"type": "function", "function": {"name": "b"}}
    asked = tools_asked([tool("a"), tool("b", parameters={"type": "object"})], named, False)
    assert asked is not None
    assert (asked.choice, list(asked.schemas), asked.parallel, asked.is_enforced) == ("required", ["b"], False, True)
    assert len(asked.offered) == 2
    with pytest.raises(UsageError, match="'c'"):
        tools_asked([tool("a")], {"type": "function", "function": {"name": "c"}}, None)


@pytest.mark.parametrize(("asked_for", "several"), [(None, False), (False, False), (True, True)])
def test_a_named_function_is_called_once_unless_several_calls_are_asked_for(
    asked_for: bool | None, several: bool
) -> None:
    named = tools_asked([tool("a")], {"type": "function", "function": {"name": "a"}}, asked_for)
    required = tools_asked([tool("a")], "required", asked_for)
    assert named is not None
    assert required is not None
    assert (named.parallel, required.parallel) == (several, asked_for is not False)


@pytest.mark.parametrize(
    ("choice", "strict", "enforced"),
    [(None, False, False), ("auto", True, True), ("none", True, False), ("required", False, True)],
)
def test_what_is_required_or_strict_is_enforced(choice: Any, strict: bool, enforced: bool) -> None:
    asked = tools_asked([tool("a", strict=strict)], choice, None)
    assert asked is not None
    assert asked.is_enforced is enforced


def test_no_tools_are_nothing_to_ask() -> None:
    assert tools_asked([], None, None) is tools_asked(None, "auto", True) is tools_asked(None, "none", None) is None


BEGUN: list[Event] = [Reasoning("hm"), Content("a"), CallBegun(0, "id", "f"), CallArguments(0, "{")]


def test_a_whole_message_holds_whole_calls() -> None:
    call = {"id": "id", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    done = [*BEGUN, CallArguments(0, "}"), CallDone(0)]
    assert message_of(done) == {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "hm",
        "tool_calls": [call],
    }
    assert message_of(done[2:])["content"] is None
    assert message_of([]) == {"role": "assistant", "content": ""}
    assert message_of([*BEGUN, CallBroken(0, "<f>{")]) == {
        "role": "assistant",
        "content": "a<f>{",
        "reasoning_content": "hm",
    }


def test_a_delta_holds_what_is_new() -> None:
    assert delta_of(BEGUN) == {
        "reasoning_content": "hm",
        "content": "a",
        "tool_calls": [{"index": 0, "id": "id", "type": "function", "function": {"name": "f", "arguments": "{"}}],
    }
    assert delta_of([CallArguments(1, "x")]) == {"tool_calls": [{"index": 1, "function": {"arguments": "x"}}]}
    assert delta_of([]) == {"content": ""}
