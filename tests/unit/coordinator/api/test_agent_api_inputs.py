"""Whatever a client sends to the APIs that agents speak is understood, or refused in a sentence that names the place; nothing else happens."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shardnet.coordinator.api.anthropic.request import MessagesRequest
from shardnet.coordinator.api.responses.request import ResponsesRequest
from shardnet.coordinator.api.schemas import usage_error
from shardnet.errors import UsageError

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
RESPONSE: dict[str, Any] = {
    "model": "m",
    "instructions": "be terse",
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "s"}], "content": None},
        {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}', "status": "completed"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "7"}]},
    ],
    "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": False}],
    "tool_choice": {"type": "function", "name": "f"},
    "text": {"format": {"type": "text"}},
    "reasoning": {"effort": "low"},
    "include": ["message.output_text.logprobs"],
    "metadata": {"a": "b"},
    "max_output_tokens": 5,
    "temperature": 0,
    "stop": ["x"],
    "chat_template_kwargs": {"x": 1},
}
MESSAGE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "be terse"}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "7", "is_error": True}]},
    ],
    "tools": [{"name": "f", "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "stop_sequences": ["x"],
    "output_config": {"effort": "low"},
    "chat_template_kwargs": {"x": 1},
}
REQUESTS: dict[str, tuple[type[ResponsesRequest | MessagesRequest], dict[str, Any]]] = {
    "response": (ResponsesRequest, RESPONSE),
    "message": (MessagesRequest, MESSAGE),
}
PLACE = re.compile(r"[A-Za-z_]+(\.[A-Za-z_0-9-]+)*: ")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*path, key))


def put(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(body)
    at: Any = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return made


def said(name: str, body: Any) -> str | None:
    """Returns: what is refused; None where the request is understood."""
    try:
        meant = REQUESTS[name][0].model_validate_json(json.dumps(body)).translated()
        with meant.in_client_words():
            meant.chat.check_supported()
            meant.chat.structure()
    except ValidationError as error:
        return str(usage_error(error))
    except UsageError as error:
        return str(error)
    return None


STRANGE: list[Any] = [
    *(None, True, 0, -1, 1.5, 10**400, "", "x", "\u0000", "x" * 100_000, [], [[]], {}, [None]),
    *([{}], [{"type": None}], {"type": "x"}, {"type": ["x"]}, {"type": "text"}, {"": ""}, [{"type": "image"}]),
    *({"type": "function_call"}, {"role": "assistant"}, {"role": None, "content": None}, ["x"] * 2000),
]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_strange_value_in_any_place_is_understood_or_refused_with_its_place(name: str) -> None:
    body = REQUESTS[name][1]
    assert said(name, body) is None
    top = set(body)
    for path in list(places(body))[1:]:
        for value in STRANGE:
            words = said(name, put(body, path, value))
            if words is not None:
                assert PLACE.match(words), (path, value, words)
                assert re.split(r"[.:]", words)[0] in top | {"input"}, (path, value, words)
                assert len(words) < 500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "id", "call_id", "name", "input", "output"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("name", REQUESTS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_anything_in_any_place_is_understood_or_refused_in_a_sentence(name: str, data: st.DataObject) -> None:
    body = REQUESTS[name][1]
    path = data.draw(st.sampled_from(list(places(body))[1:]))
    words = said(name, put(body, path, data.draw(json_values)))
    assert words is None or (": " in words and "pydantic" not in words)


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("body", [None, [], "x", 7, [[]], {}])
def test_a_body_that_is_no_request_is_refused(name: str, body: Any) -> None:
    assert said(name, body)
