"""The openai package: tools, by every choice, whole and streamed, and the round trip of a call."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import openai
from openai import OpenAI
from pydantic import BaseModel

from tests.bench.clients.client_calls import (
    BASE,
    MODEL,
    MOST,
    SCHEMAS,
    SOME_TOOL_PROMPTS,
    TOOL_PROMPTS,
    Json,
    expect,
    fault_of_call,
    run,
    tally,
    tools,
)

client = OpenAI(base_url=BASE, api_key="none", max_retries=0, timeout=600)


def ask(prompt: str, *, strict: bool = False, **options: Any) -> Any:
    """Returns: a whole answer."""
    return client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": prompt}],
        tools=tools(strict=strict),
        **({"max_tokens": MOST, "temperature": 0.7} | options),
    )


Calls = list[tuple[str | None, str, str]]
"""Each with id, name and arguments."""


def seen(calls: Calls, reason: str, content: str | None, options: Json, *, names: Any, most: int) -> str | int:
    """Returns: how many calls an answer holds, or what is wrong with them. Where the model may choose, a text that is none is an answer too."""
    is_free = options.get("tool_choice") is None
    if (
        is_free
        and not calls
        and reason in ("stop", "length")
        and content
        and not content.lstrip().startswith(("{", "<tool_call>"))
    ):
        return 0
    if not calls or reason != "tool_calls":
        return f"{len(calls)} calls, {reason}, {content!r}"
    if len(calls) > most or len({one[0] for one in calls}) != len(calls) or not all(one[0] for one in calls):
        return f"{len(calls)} calls, ids {[one[0] for one in calls]}"
    if content and not content.strip():
        return f"content {content!r}"
    return "".join(fault_of_call(name, arguments, names) for _, name, arguments in calls) or len(calls)


def whole(names: Any = tuple(SCHEMAS), most: int = 8, **options: Any) -> Callable[[str], str | int]:
    """Returns: what asks once and says what is wrong."""

    def one(prompt: str) -> str | int:
        choice = ask(prompt, **options).choices[0]
        calls = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
        return seen(calls, choice.finish_reason, choice.message.content, options, names=names, most=most)

    return one


def streamed(names: Any = tuple(SCHEMAS), most: int = 8, **options: Any) -> Callable[[str], str | int]:
    """Returns: the same of deltas, put together as clients do."""

    def one(prompt: str) -> str | int:
        calls: dict[int, Json] = {}
        content, reason = "", ""
        for part in ask(prompt, stream=True, **options):
            delta, reason = part.choices[0].delta, part.choices[0].finish_reason or reason
            content += delta.content or ""
            for call in delta.tool_calls or ():
                made = calls.setdefault(call.index, {"id": None, "name": "", "arguments": ""})
                made["id"] = call.id or made["id"]
                made["name"] += call.function.name or ""
                made["arguments"] += call.function.arguments or ""
        if sorted(calls) != list(range(len(calls))):
            return f"indices {sorted(calls)}"
        made_calls = [(one["id"], one["name"], one["arguments"]) for one in calls.values()]
        return seen(made_calls, reason, content, options, names=names, most=most)

    return one


NAMED = {"type": "function", "function": {"name": "weather"}}


def auto() -> str:
    """tools, auto, whole."""
    return tally(whole(), TOOL_PROMPTS)


def auto_streamed() -> str:
    """tools, auto, streamed."""
    return tally(streamed(), SOME_TOOL_PROMPTS)


def auto_strict() -> str:
    """tools, auto and strict, whole."""
    return tally(whole(strict=True), SOME_TOOL_PROMPTS)


def auto_strict_streamed() -> str:
    """tools, auto and strict, streamed."""
    return tally(streamed(strict=True), TOOL_PROMPTS)


def required() -> str:
    """tools, required, several calls allowed, whole."""
    return tally(whole(tool_choice="required"), TOOL_PROMPTS)


def required_streamed() -> str:
    """tools, required and strict, several calls allowed, streamed."""
    return tally(streamed(tool_choice="required", strict=True), TOOL_PROMPTS)


def required_one() -> str:
    """tools, required, parallel_tool_calls false, whole."""
    return tally(whole(most=1, tool_choice="required", parallel_tool_calls=False), TOOL_PROMPTS)


def auto_one_streamed() -> str:
    """tools, auto, parallel_tool_calls false, streamed."""
    return tally(streamed(most=1, parallel_tool_calls=False), SOME_TOOL_PROMPTS)


def named() -> str:
    """tools, a named function, whole."""
    return tally(whole(names=["weather"], most=1, tool_choice=NAMED), TOOL_PROMPTS)


def named_streamed() -> str:
    """tools, a named function, several calls allowed, streamed."""
    asks = streamed(names=["weather"], tool_choice=NAMED, parallel_tool_calls=True)
    return tally(asks, SOME_TOOL_PROMPTS)


def hot() -> str:
    """tools, required, temperature 2, several calls allowed, whole."""
    return tally(whole(tool_choice="required", temperature=2), SOME_TOOL_PROMPTS)


def none() -> str:
    """tools, none: nothing is a call."""
    choice = ask(TOOL_PROMPTS[0], tool_choice="none", max_tokens=40).choices[0]
    expect(not choice.message.tool_calls and choice.message.content, choice)
    return repr(choice.message.content[:80])


def round_trip() -> str:
    """a call, its result, the answer (A6)."""

    def one(prompt: str) -> str:
        first = ask(prompt, temperature=0, tool_choice="required").choices[0].message
        results = [{"role": "tool", "tool_call_id": call.id, "content": "4711"} for call in first.tool_calls]
        for sent in (first, first.model_dump(), first.model_dump(exclude_none=True)):
            second = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": prompt}, sent, *results],
                tools=tools(),
                temperature=0,
                max_tokens=80,
            ).choices[0]
            if not (second.message.content or second.message.tool_calls):
                return str(second)
        return ""

    return tally(one, TOOL_PROMPTS[:4])


class Multiply(BaseModel):
    """Multiply two whole numbers."""

    a: int
    b: int


def parsed_tools() -> str:
    """pydantic_function_tool: parse, and the stream helper."""
    asked: Any = {
        "model": MODEL,
        "messages": [{"role": "user", "content": TOOL_PROMPTS[12]}],
        "tools": [openai.pydantic_function_tool(Multiply)],
        "max_tokens": MOST,
        "temperature": 0,
    }
    call = client.chat.completions.parse(**asked).choices[0].message.tool_calls[0]
    expect(isinstance(call.function.parsed_arguments, Multiply), call)
    with client.chat.completions.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0].message.tool_calls[0]
    expect(isinstance(final.function.parsed_arguments, Multiply), final)
    expect("tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds, kinds)
    return json.dumps(final.function.parsed_arguments.model_dump())


def with_structure() -> str:
    """response_format beside tools: calls, then an answer that fits."""

    class Reply(BaseModel):
        number: int

    asked: Any = {"model": MODEL, "tools": tools(strict=True), "response_format": Reply, "max_tokens": MOST}
    messages: list[Any] = [{"role": "user", "content": TOOL_PROMPTS[12]}]
    first = client.chat.completions.parse(messages=messages, temperature=0, **asked).choices[0].message
    if first.tool_calls:
        messages += [first, *({"role": "tool", "tool_call_id": one.id, "content": "851"} for one in first.tool_calls)]
        second = client.chat.completions.parse(messages=messages, temperature=0, **asked).choices[0].message
        expect(second.parsed or second.tool_calls, second)
        return f"{len(first.tool_calls)} calls, then {second.parsed or 'calls'}"
    expect(first.parsed, first)
    return f"no call, {first.parsed}"


CALLS = (
    auto, auto_streamed, auto_strict, auto_strict_streamed, required, required_streamed, required_one, auto_one_streamed, named,
    named_streamed, hot, none, round_trip, parsed_tools, with_structure,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(f"openai {openai.__version__}", CALLS))
