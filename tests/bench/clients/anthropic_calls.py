"""The Messages API, by the anthropic package."""

from __future__ import annotations

import json
import sys
from typing import Any

import anthropic

from tests.bench.clients.client_calls import (
    ABOUT,
    BASE,
    MODEL,
    MOST,
    SCHEMAS,
    TOOL_PROMPTS,
    expect,
    fault_of_call,
    run,
    tally,
)

client: Any = anthropic.Anthropic(base_url=BASE.removesuffix("/v1"), api_key="none", max_retries=0, timeout=600)
HELLO: Any = [{"role": "user", "content": "Say hello in one short sentence."}]
TOOLS: Any = [{"name": name, "description": ABOUT[name], "input_schema": schema} for name, schema in SCHEMAS.items()]


def plain() -> str:
    """messages.create, and its blocks sent back; count_tokens."""
    first = client.messages.create(model=MODEL, max_tokens=24, messages=HELLO, system="Be brief.")
    expect(first.content[0].text and first.stop_reason and first.usage.output_tokens, first)
    back = [*HELLO, {"role": "assistant", "content": first.content}, {"role": "user", "content": "Thanks."}]
    second = client.messages.create(model=MODEL, max_tokens=24, messages=back)
    expect(client.messages.count_tokens(model=MODEL, messages=back).input_tokens > 20, "no count")
    return repr(second.content[0].text)


def stream() -> str:
    """messages.stream."""
    with client.messages.stream(model=MODEL, max_tokens=24, messages=HELLO) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    expect(text and text == final.content[0].text, (text, final))
    return repr(text)


def calls_of(message: Any) -> str | int:
    """Returns: how many calls a message holds, or what is wrong with them."""
    calls = [block for block in message.content if block.type == "tool_use"]
    if message.stop_reason != "tool_use" or not calls:
        return str(message)
    return "".join(fault_of_call(call.name, json.dumps(call.input)) for call in calls) or len(calls)


def with_tools() -> str:
    """tools, any, one call, whole."""
    choice = {"type": "any", "disable_parallel_tool_use": True}

    def one(prompt: str) -> str | int:
        messages = [{"role": "user", "content": prompt}]
        return calls_of(
            client.messages.create(model=MODEL, max_tokens=MOST, messages=messages, tools=TOOLS, tool_choice=choice)
        )

    return tally(one, TOOL_PROMPTS)


def streamed_tools() -> str:
    """tools, any, streamed; the result sent back."""
    messages: list[Any] = [{"role": "user", "content": TOOL_PROMPTS[12]}]
    asked: Any = {"model": MODEL, "max_tokens": MOST, "tools": TOOLS}
    with client.messages.stream(**asked, messages=messages, tool_choice={"type": "any"}) as events:
        final = events.get_final_message()
    expect(isinstance(calls_of(final), int), calls_of(final))
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "851"}
        for block in final.content
        if block.type == "tool_use"
    ]
    messages += [{"role": "assistant", "content": final.content}, {"role": "user", "content": results}]
    second = client.messages.create(**asked, messages=messages)
    expect(second.content, second)
    return str(second.content)[:200]


def errors() -> str:
    """errors come as the package's own kinds."""
    seen = []
    for wanted, change in (
        (anthropic.NotFoundError, {"model": "another"}),
        (anthropic.BadRequestError, {"max_tokens": 0}),
        (anthropic.BadRequestError, {"messages": []}),
    ):
        try:
            client.messages.create(**({"model": MODEL, "max_tokens": 9, "messages": HELLO} | change))
        except wanted as error:
            expect("Input should" not in str(error), error)
            seen.append(type(error).__name__)
        else:
            expect(False, f"no {wanted}")
    return ", ".join(seen)


CALLS = (plain, stream, with_tools, streamed_tools, errors)

if __name__ == "__main__":
    sys.exit(run(f"anthropic {anthropic.__version__}", CALLS))
