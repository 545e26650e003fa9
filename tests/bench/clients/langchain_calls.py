"""langchain-openai: ChatOpenAI by invoke, stream, batch and events, bind_tools, with_structured_output."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any, Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

from tests.bench.clients.client_calls import (
    BASE,
    MODEL,
    MOST,
    PARSED,
    SOME_PARSED,
    SOME_TOOL_PROMPTS,
    TOOL_PROMPTS,
    Tree,
    expect,
    fault_of_call,
    run,
    tally,
)


def model(**options: Any) -> Any:
    """Returns: the chat model."""
    fields = {"max_tokens": MOST, "temperature": 0.7, "max_retries": 0} | options
    return ChatOpenAI(base_url=BASE, api_key="none", model=MODEL, **fields)  # type: ignore[arg-type,unused-ignore]


def weather(city: str, unit: Literal["celsius", "fahrenheit"]) -> str:
    """The weather of a city now"""
    return f"sunny in {city}, 20 {unit}"


def multiply(a: int, b: int) -> int:
    """Multiply two whole numbers"""
    return a * b


TOOLS: list[Any] = [tool(weather), tool(multiply)]
NOT_RECURSIVE = [case for case in SOME_PARSED if case[0] is not Tree]
"""A recursive model is none any more by the time that langchain sends it as a tool (findings/langchain-recursive-tools.sh)."""
HELLO = "Say hello in one short sentence."


def plain() -> str:
    """invoke, batch."""
    answer = model(max_tokens=24).invoke(HELLO)
    expect(answer.content and answer.usage_metadata["total_tokens"], answer)
    both = model(max_tokens=24).batch([HELLO, "Say goodbye."])
    expect(all(one.content for one in both), both)
    return repr(answer.content)


def stream() -> str:
    """stream, with usage."""
    parts = list(model(max_tokens=24, stream_usage=True).stream(HELLO))
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    expect(whole.content and whole.usage_metadata and whole.response_metadata["finish_reason"], whole)
    return f"{len(parts)} parts"


async def events() -> str:
    """ainvoke, astream, astream_events."""
    answer = await model(max_tokens=24).ainvoke(HELLO)
    parts = [part.content async for part in model(max_tokens=24).astream(HELLO)]
    kinds = [event["event"] async for event in model(max_tokens=24).astream_events(HELLO, version="v2")]
    expect(answer.content and "".join(parts), (answer, parts))
    expect(kinds[0] == "on_chat_model_start" and kinds[-1] == "on_chat_model_end" and len(kinds) > 3, kinds)
    return f"{len(kinds)} events"


def logprobs() -> str:
    """logprobs, n, stop, seed, the completion model."""
    answer = model(max_tokens=8).bind(logprobs=True, top_logprobs=2).invoke(HELLO)
    content = answer.response_metadata["logprobs"]["content"]
    expect(all(len(one["top_logprobs"]) == 2 for one in content), content)
    many = model(max_tokens=8, n=2).generate([[HumanMessage(HELLO)]])
    expect(len(many.generations[0]) == 2, many)
    stopped = model(max_tokens=60, temperature=0, seed=3).invoke("Count from 1 to 9.", stop=["5"])
    expect("5" not in stopped.content, stopped)
    complete: Any = OpenAI(base_url=BASE, api_key="none", model=MODEL, max_tokens=8)  # type: ignore[arg-type,unused-ignore]
    expect(complete.invoke("One, two,") and "".join(complete.stream("One, two,")), "nothing completed")
    return repr(stopped.content)


def calls_of(answer: Any) -> str | int:
    """Returns: how many calls an answer holds, or what is wrong with them."""
    if answer.invalid_tool_calls:
        return str(answer)
    return "".join(fault_of_call(one["name"], json.dumps(one["args"])) for one in answer.tool_calls) or len(
        answer.tool_calls
    )


def auto() -> str:
    """bind_tools."""
    bound = model().bind_tools(TOOLS)
    return tally(lambda prompt: calls_of(bound.invoke(prompt)), SOME_TOOL_PROMPTS)


def required() -> str:
    """bind_tools, any, strict, one call."""
    bound = model().bind_tools(TOOLS, tool_choice="any", strict=True, parallel_tool_calls=False)
    return tally(lambda prompt: calls_of(bound.invoke(prompt)), TOOL_PROMPTS)


def streamed_tools() -> str:
    """bind_tools, any, streamed."""
    bound = model().bind_tools(TOOLS, tool_choice="any")

    def one(prompt: str) -> str | int:
        parts = list(bound.stream(prompt))
        whole = parts[0]
        for part in parts[1:]:
            whole += part
        return calls_of(whole)

    return tally(one, SOME_TOOL_PROMPTS)


def named() -> str:
    """bind_tools, a named function, one call."""
    bound = model().bind_tools(TOOLS, tool_choice="multiply", parallel_tool_calls=False)
    return tally(lambda prompt: calls_of(bound.invoke(prompt)), TOOL_PROMPTS[10:15])


def round_trip() -> str:
    """a call, its result by the tool, the answer."""
    messages: list[Any] = [HumanMessage(TOOL_PROMPTS[12])]
    bound = model(temperature=0).bind_tools(TOOLS)
    first = bound.invoke(messages)
    expect(first.tool_calls, first)
    by_name = {one.name: one for one in TOOLS}
    results = [
        ToolMessage(str(by_name[one["name"]].invoke(one["args"])), tool_call_id=one["id"]) for one in first.tool_calls
    ]
    answer = bound.invoke([*messages, first, *results])
    expect(answer.content or answer.tool_calls, answer)
    return repr(answer.content)


def structured(method: str, cases: Any, **options: Any) -> str:
    """Returns: how many answers fit."""

    def one(case: Any) -> str:
        shape, prompt = case
        asked = model(max_tokens=600).with_structured_output(shape, method=method, **options)
        found = asked.invoke(f"{prompt} Give it as JSON.")
        return "" if isinstance(found, shape) else repr(found)

    return tally(one, cases)


def by_schema() -> str:
    """with_structured_output, json_schema."""
    return structured("json_schema", PARSED)


def by_calling() -> str:
    """with_structured_output, function_calling."""
    return structured("function_calling", NOT_RECURSIVE)


def by_strict_calling() -> str:
    """with_structured_output, function_calling, strict."""
    return structured("function_calling", NOT_RECURSIVE, strict=True)


def structured_stream() -> str:
    """with_structured_output, json_schema, streamed; include_raw."""
    shape, prompt = PARSED[0]
    parts = list(model(max_tokens=600).with_structured_output(shape, method="json_schema").stream(prompt))
    expect(isinstance(parts[-1], shape), parts[-1])
    both = model(max_tokens=600).with_structured_output(shape, method="json_schema", include_raw=True).invoke(prompt)
    expect(isinstance(both["parsed"], shape) and both["parsing_error"] is None, both)
    return f"{len(parts)} parts"


CALLS = (
    plain, stream, events, logprobs, auto, required, streamed_tools, named, round_trip, by_schema, by_calling, by_strict_calling,
    structured_stream,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(f"langchain-openai {version('langchain-openai')}", CALLS))
