"""pydantic-ai: agents with tools and output types, run, streamed, iterated."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

from tests.bench.clients.client_calls import (
    BASE,
    MODEL,
    PARSED,
    SOME_PARSED,
    SOME_TOOL_PROMPTS,
    TOOL_PROMPTS,
    expect,
    run,
    tally,
)

MOST_REQUESTS = UsageLimits(request_limit=6)


def model() -> Any:
    """Returns: the model, with a client of its own: each run has an event loop of its own."""
    return OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE, api_key="none"))


def agent(**options: Any) -> Any:
    """Returns: an agent."""
    return Agent(model(), model_settings={"max_tokens": 600, "temperature": 0.7, "timeout": 600}, **options)


async def plain() -> str:
    """run, run_stream, message_history."""
    asked = agent(instructions="Answer in one short sentence.")
    first = await asked.run("Say hello.")
    async with asked.run_stream("And goodbye.", message_history=first.all_messages()) as streamed:
        parts = [text async for text in streamed.stream_text(delta=True)]
    expect(first.output and "".join(parts) and first.usage.output_tokens, first)
    return repr(first.output)


def with_tools(seen: list[tuple[str, Any]]) -> Any:
    """Returns: an agent with two tools that note their calls."""
    made = agent(instructions="Use the tools, then answer in one sentence.")

    def weather(city: str, unit: Literal["celsius", "fahrenheit"]) -> str:
        """The weather of a city now"""
        seen.append(("weather", city))
        return f"20 {unit}, sunny"

    def multiply(a: int, b: int) -> int:
        """Multiply two whole numbers"""
        seen.append(("multiply", (a, b)))
        return a * b

    made.tool_plain(weather)
    made.tool_plain(multiply)
    return made


def tools() -> str:
    """an agent with tools: calls, results, answer."""

    def one(prompt: str) -> str | int:
        seen: list[tuple[str, Any]] = []
        try:
            answer = with_tools(seen).run_sync(prompt, usage_limits=MOST_REQUESTS).output
        except (
            UsageLimitExceeded
        ):  # calls on and on, as small models do: each of them was taken, and its result sent back
            answer = ""
        return len(seen) if seen or answer else "nothing"

    return tally(one, SOME_TOOL_PROMPTS)


async def events() -> str:
    """an agent with tools, its events."""
    seen: list[tuple[str, Any]] = []
    kinds = []
    async with with_tools(seen).iter(TOOL_PROMPTS[12], usage_limits=MOST_REQUESTS) as run:
        async for node in run:
            kinds.append(type(node).__name__)
            if Agent.is_model_request_node(node):
                async with node.stream(run.ctx) as stream:
                    kinds += [event.event_kind async for event in stream]
    expect(seen and run.result.output, kinds)
    return f"{len(kinds)} events, {seen}"


def outputs(kind: Any, cases: Any) -> str:
    """Returns: how many outputs fit."""

    def one(case: Any) -> str:
        shape, prompt = case
        found = agent(output_type=kind(shape), retries=0).run_sync(f"{prompt} Give it.").output
        return "" if isinstance(found, shape) else repr(found)

    return tally(one, cases)


def by_tool() -> str:
    """output_type by a tool."""
    return outputs(ToolOutput, SOME_PARSED)


def by_schema() -> str:
    """output_type by JSON schema."""
    return outputs(NativeOutput, PARSED)


class Product(BaseModel):
    """The product that was asked for."""

    number: int


def by_prompt() -> str:
    """output_type by prompt and json_object."""
    asked = agent(output_type=PromptedOutput(Product), retries=5)
    return repr(asked.run_sync('The JSON object {"number": 7}, please, and nothing else.').output)


def tool_and_output(kind: Any) -> str:
    """Returns: what an agent with a tool and an output type gave."""
    seen = []
    asked = agent(output_type=kind(Product), retries=3, instructions="First call multiply, then give its result.")

    def multiply(a: int, b: int) -> int:
        """Multiply two whole numbers"""
        seen.append((a, b))
        return a * b

    asked.tool_plain(multiply)
    found = asked.run_sync(TOOL_PROMPTS[12], usage_limits=UsageLimits(request_limit=10)).output
    expect(isinstance(found, Product), found)
    return f"{seen}, then {found}"


def tool_and_tool_output() -> str:
    """a tool and an output type by a tool."""
    return tool_and_output(ToolOutput)


def tool_and_schema_output() -> str:
    """a tool and an output type by JSON schema."""
    return tool_and_output(NativeOutput)


async def streamed_output() -> str:
    """an output type, streamed."""
    shape, prompt = PARSED[0]
    parts = []
    async with agent(output_type=NativeOutput(shape)).run_stream(prompt) as streamed:
        async for part in streamed.stream_output(debounce_by=None):
            parts.append(part)
    expect(isinstance(parts[-1], shape), parts)
    return f"{len(parts)} parts"


CALLS = (
    plain, tools, events, by_tool, by_schema, by_prompt, tool_and_tool_output, tool_and_schema_output, streamed_output,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run(f"pydantic-ai {version('pydantic-ai-slim')}", CALLS))
