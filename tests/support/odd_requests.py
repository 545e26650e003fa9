"""Requests that no good client sends: bodies with a value out of place at any depth, and HTTP that is odd but valid."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

HI = [{"role": "user", "content": "hi"}]
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = [
    *HI,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "x"},
]
SCHEMA = {"type": "object", "properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}, "required": ["a"]}
COMMON: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "seed": 7,
    "stop": ["x"],
    "n": 1,
    "logit_bias": {"50": 1},
    "stream_options": {"include_usage": True},
    "return_token_ids": True,
}
VALID: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        COMMON | {"messages": HI, "logprobs": True, "top_logprobs": 1},
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            "chat_template_kwargs": {"a": {"b": [1]}},
        },
        {
            "messages": HI,
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "max_tokens": 2,
        },
        {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
        {
            "messages": HI,
            "structured_outputs": {"json": SCHEMA},
            "documents": [{"text": "d"}],
            "reasoning_effort": "low",
        },
        {"messages": CALLED, "max_tokens": 2},
    ],
    "/v1/completions": [
        COMMON | {"prompt": "hi", "logprobs": 1},
        {"prompt": [[72], [73]], "echo": True, "max_tokens": 2},
        {"prompt": "hi", "json_schema": SCHEMA, "max_tokens": 2},
        {"prompt": "hi", "regex": "[a-z]+", "grammar": "", "max_tokens": 2},
    ],
    "/tokenize": [
        {"content": "hi", "with_pieces": True},
        {"messages": HI, "tools": [TOOL], "documents": [{"text": "d"}]},
    ],
    "/detokenize": [{"model": "tiny", "tokens": [72, 73]}],
    "/v1/responses": [
        {
            "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
            "instructions": "be brief",
            "max_output_tokens": 2,
            "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
            "reasoning": {"effort": "low"},
            "include": ["message.output_text.logprobs"],
            "metadata": {"a": "b"},
        },
        {
            "input": [
                *({"role": "user", "content": "hi"}, {"type": "reasoning", "summary": [], "content": []}),
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "x"},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}],
            "tool_choice": {"type": "function", "name": "f"},
        },
    ],
    "/v1/embeddings": [
        {"model": "tiny", "input": ["hi", "ho"], "dimensions": 8, "encoding_format": "float"},
        {"input": [[72, 73]], "encoding_format": "base64"},
    ],
    "/v1/messages": [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "x"}]},
            ],
            "system": [{"type": "text", "text": "be brief"}],
            "max_tokens": 2,
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {}}}],
            "tool_choice": {"type": "tool", "name": "f"},
            "stop_sequences": ["x"],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "metadata": {"user_id": "me"},
        },
    ],
}
"""Path -> bodies that are taken, in which `with_odd_value` puts something else."""


class Raw(str):
    """JSON as it is to stand in the body, valid or not."""


def deep(levels: int) -> Raw:
    return Raw("[" * levels + "]" * levels)


ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, -0.0, "", "x", "\x00", "5", [], {}, [[]], [None], {"": {}}, {"x": "y"}, [1, "x"]),
    *(
        Raw("NaN"),
        Raw("Infinity"),
        Raw("-Infinity"),
        Raw("1e999"),
        Raw("-1e-999"),
        Raw("9" * 400),
        Raw("-" + "9" * 5000),
    ),
    *(Raw('"\\ud800"'), Raw('"\\udfff x"'), Raw('"\\u0000"'), Raw('{"a": 1, "a": {}}'), deep(50), deep(600)),
    *(1 << 31, 1 << 63, 1 << 64, 1e308, "y" * 3000, ["z"] * 300, {f"k{n}": n for n in range(100)}),
    *(
        {"type": "image_url", "image_url": {"url": "x"}},
        [{"type": "text"}],
        {"$ref": "#"},
        {"type": "object"},
        "😀",
        "<|im_end|>",
    ),
]


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value within a body."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*before, key)
        yield from places(inner, (*before, key))


def with_odd_value(body: dict[str, Any], place: tuple[Any, ...], odd: Any) -> bytes:
    """Returns: the body with something else at a place."""
    changed = copy.deepcopy(body)
    at: Any = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = odd
    return written(changed).encode(errors="surrogatepass")


def written(value: Any) -> str:
    """Returns: JSON, in which `Raw` stands as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(written(one) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False)


WHOLE = [
    *(
        b"",
        b" ",
        b"null",
        b"true",
        b"5",
        b'"x"',
        b"[]",
        b"{}",
        b"{",
        b'{"a"',
        b'{"a": 1,}',
        b"{'a': 1}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ),
    *(
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"{}{}",
        b"{} x",
        b"\x00",
        b"NaN",
        b"9" * 5000,
        b"a=1&b=2",
        b'{"model": "a", "model": 5}',
    ),
]
"""Bodies that are none, or no object."""
