"""litellm: completion and acompletion, streamed, with tools and structures."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks a public server
import litellm

from tests.bench.clients.client_calls import (
    BASE,
    MODEL,
    MOST,
    PARSED,
    SOME_TOOL_PROMPTS,
    TOOL_PROMPTS,
    expect,
    fault_of_call,
    run,
    tally,
    tools,
)

ASK: Any = {"model": f"openai/{MODEL}", "api_base": BASE, "api_key": "none", "num_retries": 0, "timeout": 600}
HELLO = [{"role": "user", "content": "Say hello in one short sentence."}]


def plain() -> str:
    """completion."""
    answer = litellm.completion(**ASK, messages=HELLO, max_tokens=24, temperature=0)
    expect(answer.choices[0].message.content and answer.usage.total_tokens, answer)
    return repr(answer.choices[0].message.content)


def stream() -> str:
    """completion, streamed, put together by stream_chunk_builder."""
    parts = list(
        litellm.completion(**ASK, messages=HELLO, max_tokens=24, stream=True, stream_options={"include_usage": True})
    )
    built: Any = litellm.stream_chunk_builder(parts, messages=HELLO)
    expect(built.choices[0].message.content and built.choices[0].finish_reason, built)
    return f"{len(parts)} parts"


async def waited() -> str:
    """acompletion, whole and streamed."""
    answer: Any = await litellm.acompletion(**ASK, messages=HELLO, max_tokens=24)
    text = ""
    stream: Any = await litellm.acompletion(**ASK, messages=HELLO, max_tokens=24, stream=True)
    async for part in stream:
        text += part.choices[0].delta.content or ""
    expect(answer.choices[0].message.content and text, (answer, text))
    return repr(text)


def text_completion() -> str:
    """text_completion of several prompts, streamed too."""
    ask = ASK | {"model": f"text-completion-openai/{MODEL}"}
    answer: Any = litellm.text_completion(**ask, prompt=["One, two,", "Red,"], max_tokens=4)
    expect(len(answer.choices) == 2, answer)
    parts = list(litellm.text_completion(**ask, prompt="One, two,", max_tokens=4, stream=True))
    expect("".join(part.choices[0].text or "" for part in parts if part.choices), parts)
    return repr(answer.choices[0].text)


def called(choice: Any) -> str:
    """Returns: what is wrong with an answer's calls."""
    calls = choice.message.tool_calls or []
    if not calls or choice.finish_reason != "tool_calls":
        return f"{choice}"
    return "".join(fault_of_call(one.function.name, one.function.arguments) for one in calls)


def with_tools(prompts: Any, **options: Any) -> str:
    """Returns: how many called."""

    def one(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        return called(
            litellm.completion(**ASK, messages=messages, tools=tools(), max_tokens=MOST, **options).choices[0]
        )

    return tally(one, prompts)


def auto() -> str:
    """tools, auto."""
    return with_tools(TOOL_PROMPTS[10:13], temperature=0)


def required() -> str:
    """tools, required, one call."""
    return with_tools(TOOL_PROMPTS, tool_choice="required", parallel_tool_calls=False, temperature=0.7)


def streamed_tools() -> str:
    """tools, required, streamed, put together by stream_chunk_builder."""

    def one(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        asked = ASK | {"messages": messages, "tools": tools(), "tool_choice": "required", "max_tokens": MOST}
        built: Any = litellm.stream_chunk_builder(list(litellm.completion(**asked, stream=True)))
        return called(built.choices[0])

    return tally(one, SOME_TOOL_PROMPTS)


def round_trip() -> str:
    """a call, its result, the answer."""
    messages: list[Any] = [{"role": "user", "content": TOOL_PROMPTS[12]}]
    first: Any = litellm.completion(**ASK, messages=messages, tools=tools(), tool_choice="required", temperature=0)
    message = first.choices[0].message
    results = [{"role": "tool", "tool_call_id": one.id, "content": "851"} for one in message.tool_calls]
    second: Any = litellm.completion(**ASK, messages=[*messages, message, *results], tools=tools(), max_tokens=60)
    expect(second.choices[0].message.content or second.choices[0].message.tool_calls, second)
    return repr(second.choices[0].message.content)


def structures() -> str:
    """response_format of pydantic models."""

    def one(case: Any) -> str:
        shape, prompt = case
        messages = [{"role": "user", "content": f"{prompt} Give it as JSON."}]
        answer: Any = litellm.completion(
            **ASK, messages=messages, response_format=shape, max_tokens=600, temperature=0.7
        )
        shape.model_validate_json(answer.choices[0].message.content)
        return ""

    return tally(one, PARSED)


def errors() -> str:
    """errors come as litellm's own kinds."""
    seen = []
    for wanted, change in (
        (litellm.NotFoundError, {"model": "openai/another"}),
        (litellm.BadRequestError, {"temperature": -1}),
        (litellm.ContextWindowExceededError, {"messages": [{"role": "user", "content": "x " * 9000}]}),
    ):
        try:
            litellm.completion(**(ASK | {"messages": HELLO} | change))
        except wanted as error:
            seen.append(type(error).__name__)
        else:
            expect(False, f"no {wanted}")
    return ", ".join(seen)


CALLS = (plain, stream, waited, text_completion, auto, required, streamed_tools, round_trip, structures, errors)

if __name__ == "__main__":
    litellm.suppress_debug_info = True
    sys.exit(run(f"litellm {version('litellm')}", CALLS))
