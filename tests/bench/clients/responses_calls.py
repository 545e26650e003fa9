"""The Responses API, by the openai package, litellm, langchain-openai and pydantic-ai."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks a public server
import litellm
import openai
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic_ai import Agent
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.bench.clients.client_calls import (
    ABOUT,
    BASE,
    MODEL,
    SCHEMAS,
    SOME_PARSED,
    SOME_TOOL_PROMPTS,
    TOOL_PROMPTS,
    Fault,
    expect,
    fault_of_call,
    run,
    tally,
)

client = OpenAI(base_url=BASE, api_key="none", max_retries=0, timeout=600)
HELLO = "Say hello in one short sentence."
TOOLS: Any = [
    {"type": "function", "name": name, "description": ABOUT[name], "parameters": schema}
    for name, schema in SCHEMAS.items()
]


def plain() -> str:
    """responses.create, and an answer sent back."""
    first = client.responses.create(model=MODEL, input=HELLO, max_output_tokens=24, instructions="Be brief.")
    expect(first.output_text and first.usage.total_tokens, first)
    items: Any = [{"role": "user", "content": HELLO}, *first.output, {"role": "user", "content": "Thanks."}]
    second = client.responses.create(model=MODEL, input=items, max_output_tokens=24)
    expect(second.output_text, second)
    return repr(second.output_text)


def stream() -> str:
    """responses.create streamed, and the stream helper."""
    kinds = [one.type for one in client.responses.create(model=MODEL, input=HELLO, max_output_tokens=24, stream=True)]
    expect(kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete"), kinds)
    with client.responses.stream(model=MODEL, input=HELLO) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        final = events.get_final_response()
    expect(text == final.output_text, (text, final))
    return f"{len(kinds)} events, {text!r}"


def parse() -> str:
    """responses.parse."""

    def one(case: Any) -> str:
        shape, prompt = case
        found = client.responses.parse(
            model=MODEL, input=f"{prompt} Give it as JSON.", text_format=shape, max_output_tokens=600
        )
        return "" if isinstance(found.output_parsed, shape) else str(found)

    return tally(one, SOME_PARSED)


def with_tools() -> str:
    """tools, required: whole, streamed, and the result sent back."""

    def one(prompt: str) -> str | int:
        asked: Any = {"model": MODEL, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
        items: Any = [{"role": "user", "content": prompt}]
        first = client.responses.create(input=items, **asked)
        with client.responses.stream(input=items, **asked) as events:
            streamed = [event for event in events if event.type == "response.function_call_arguments.done"]
            final = events.get_final_response()
        for found in (first, final):
            calls = [item for item in found.output if item.type == "function_call"]
            if not calls or (wrong := "".join(fault_of_call(call.name, call.arguments) for call in calls)):
                return wrong or str(found)
        results = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "851"}
            for call in first.output
            if call.type == "function_call"
        ]
        second = client.responses.create(
            model=MODEL, input=[*items, *first.output, *results], tools=TOOLS, max_output_tokens=60
        )
        return len(streamed) if second.output else str(second)

    return tally(one, SOME_TOOL_PROMPTS)


def refused() -> str:
    """what is not kept is refused."""
    try:
        client.responses.create(model=MODEL, input=HELLO, previous_response_id="resp_1")
    except openai.BadRequestError as error:
        expect(error.param == "previous_response_id", error)
        return str(error.body)[:120]
    raise Fault("was answered")


def by_litellm() -> str:
    """litellm.responses, whole and streamed."""
    ask: Any = {
        "model": f"openai/{MODEL}",
        "api_base": BASE,
        "api_key": "none",
        "input": HELLO,
        "max_output_tokens": 24,
    }
    whole: Any = litellm.responses(**ask)
    expect(any(item.type == "message" for item in whole.output), whole)
    kinds = [str(event.type) for event in litellm.responses(**ask, stream=True)]
    expect(len(kinds) > 3, kinds)
    return f"{len(kinds)} events"


def by_langchain() -> str:
    """langchain-openai with use_responses_api: invoke, stream, bind_tools."""
    chat: Any = ChatOpenAI(
        base_url=BASE, api_key="none", model=MODEL, use_responses_api=True, max_retries=0, temperature=0
    )
    answer = chat.invoke(HELLO)
    expect(answer.text and "".join(part.text for part in chat.stream(HELLO)), answer)
    bound = chat.bind_tools(TOOLS, tool_choice="any", parallel_tool_calls=False)
    [call] = bound.invoke(TOOL_PROMPTS[12]).tool_calls
    fault = fault_of_call(call["name"], json.dumps(call["args"]))
    expect(not fault, fault)
    return f"{answer.text!r}, {call['args']}"


def by_pydantic_ai() -> str:
    """pydantic-ai's OpenAIResponsesModel: a tool and its result, an output type."""
    seen = []

    def multiply(a: int, b: int) -> int:
        """Multiply two whole numbers"""
        seen.append((a, b))
        return a * b

    model: Any = OpenAIResponsesModel(MODEL, provider=OpenAIProvider(base_url=BASE, api_key="none"))
    asked: Any = Agent(model, tools=[multiply], retries=3, model_settings={"temperature": 0, "max_tokens": 200})
    try:
        said = asked.run_sync(TOOL_PROMPTS[12]).output
    except (
        UnexpectedModelBehavior
    ):  # calls on and on, or says nothing, as small models do: each call was taken, and its result sent back
        said = ""
    expect(seen, said)
    shape, prompt = SOME_PARSED[-1]
    typed: Any = Agent(model, output_type=shape, retries=3)
    expect(isinstance(typed.run_sync(prompt).output, shape), shape)
    return f"{seen}, {said!r}"


CALLS = (plain, stream, parse, with_tools, refused, by_litellm, by_langchain, by_pydantic_ai)

if __name__ == "__main__":
    litellm.suppress_debug_info = True
    sys.exit(run(f"responses, openai {openai.__version__}", CALLS))
