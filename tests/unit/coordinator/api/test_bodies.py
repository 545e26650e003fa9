"""Large bodies are read as small ones are, in other words where they are wrong, and what would take long is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardnet.coordinator.api import bodies
from shardnet.coordinator.api.bodies import AT_ONCE, MAX_CONTAINERS, MAX_DEPTH, read_body
from shardnet.coordinator.api.schemas import ChatRequest, CompletionRequest, DetokenizeRequest
from shardnet.errors import UsageError

CHAT = {"messages": [{"role": "user", "content": "é"}], "tools": [{"type": "function"}], "temperature": 1, "stop": "a"}
SPACE = b" " * (AT_ONCE + 1)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


async def refused(body: bytes, kind: Any = CompletionRequest) -> str:
    with pytest.raises(UsageError) as caught:
        await read_body(body, kind)
    return str(caught.value)


async def test_a_large_body_means_what_a_small_one_means() -> None:
    body = json.dumps(CHAT).encode()
    assert await read_body(body + SPACE, ChatRequest) == await read_body(body, ChatRequest)


@settings(max_examples=40)
@given(VALUES)
def test_any_json_is_read(value: Any) -> None:
    assert bodies._Decoder().read(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "field", [{"top_k": "x"}, {"temperature": -1}, {"stop": ["a", 1]}, {"messages": [{"role": ""}]}]
)
async def test_the_same_is_wrong_in_a_large_body(field: dict[str, Any]) -> None:
    body = json.dumps(CHAT | field).encode()
    assert await refused(body + SPACE, ChatRequest) == await refused(body, ChatRequest)


@pytest.mark.parametrize("space", [b"", SPACE])
@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"a": }', b'{"prompt": "a"} x', b'{"prompt": "\xff"}', b"[1, 2", b'{"prompt": "\\ud800"}']
)
async def test_what_is_no_json_is_said_to_be_none(body: bytes, space: bytes) -> None:
    assert (await refused(space + body)).startswith("the body is not JSON: ")


@pytest.mark.parametrize("space", [b"", SPACE])
async def test_characters_written_as_pairs_are_read(space: bytes) -> None:
    asked = await read_body(space + b'{"prompt": "\\ud83d\\ude00"}', CompletionRequest)
    assert asked.prompt == "😀"


async def test_half_a_pair_in_a_key_is_refused_too() -> None:
    assert "half a surrogate pair" in await refused(SPACE + b'{"tools": [{"\\udc00": 1}]}')


async def test_a_body_that_is_no_object_is_refused() -> None:
    assert await refused(b"[]" + SPACE) == await refused(b"[]") == "the body must be an object with keys"


async def test_depth_and_number_of_parts_are_bounded() -> None:
    deep = b'{"x": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert await read_body(SPACE + deep, CompletionRequest)
    assert "200 within one another" in await refused(SPACE + b'{"x": ' + b"[" * 300_000)
    assert "50000 objects and lists" in await refused(SPACE + b'{"x": [' + b"[]," * MAX_CONTAINERS + b"1]}")


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        (CompletionRequest, {"prompt": [[-1]] * 12_000}, "prompt.0.0: must be at least 0"),
        (CompletionRequest, {"prompt": [-1] * 20_000}, "prompt.0: must be at least 0"),
        (CompletionRequest, {"prompt": [1] * 20_000 + [-1] * 20}, "prompt.20000: must be at least 0"),
        (CompletionRequest, {"prompt": [[1], [2] * 20_000 + ["x"]]}, "prompt.1.20000: must be a whole number"),
        (DetokenizeRequest, {"tokens": [1] * 20_000 + ["x"] * 20}, "tokens.20000: must be a whole number"),
        (ChatRequest, {"messages": [{"role": "", "content": 7}] * 2000}, "messages.0.role: must not be empty"),
        (ChatRequest, {"messages": [{"role": "user", "content": [7] * 20_000}]}, "messages.0.content.0: must be"),
        (DetokenizeRequest, {"tokens": ["x"] * 10_000}, "tokens.0: must be a whole number"),
    ],
)
async def test_a_body_that_is_wrong_everywhere_is_refused_for_its_first_fault(kind: Any, body: Any, words: str) -> None:
    """All faults of 12,000 lists, each for every kind that a prompt may be, took seconds on the event loop (tests/bench/bench_loop_hold.py)."""
    written = json.dumps(body, separators=(",", ":")).encode()
    assert len(written) <= AT_ONCE * 1.6
    for space in (b"", SPACE):
        assert (await refused(written + space, kind)).startswith(words)
