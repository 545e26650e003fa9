"""The openai package: structured answers, by `.parse`, by its stream helper, and by every other field."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import openai
from openai import OpenAI
from pydantic import BaseModel

from tests.bench.clients.client_calls import BASE, MODEL, MOST, PARSED, SOME_PARSED, Fault, Person, expect, run, tally

client = OpenAI(base_url=BASE, api_key="none", max_retries=0, timeout=600)
Case = tuple[type[BaseModel], str]


def asked(case: Case) -> Any:
    """Returns: the fields of a request."""
    shape, prompt = case
    messages = [{"role": "user", "content": f"{prompt} Give it as JSON."}]
    return {"model": MODEL, "messages": messages, "response_format": shape, "max_tokens": 600, "temperature": 0.7}


def parse() -> str:
    """.parse of nested, recursive, optional, literal, bounded, patterned, mapped and united models."""

    def one(case: Case) -> str:
        try:
            message = client.chat.completions.parse(**asked(case)).choices[0].message
        except openai.LengthFinishReasonError as error:
            return f"too long: {error.completion.choices[0].message.content}"
        return "" if isinstance(message.parsed, case[0]) else str(message)

    return tally(one, PARSED)


def stream() -> str:
    """the stream helper with the same models: snapshots parse, the end fits."""

    def one(case: Case) -> str:
        with client.chat.completions.stream(**asked(case)) as events:
            kinds = {event.type for event in events}
            parsed = events.get_final_completion().choices[0].message.parsed
        return "" if isinstance(parsed, case[0]) and {"content.delta", "content.done"} <= kinds else f"{kinds} {parsed}"

    return tally(one, SOME_PARSED)


def objects() -> str:
    """response_format json_object."""

    def one(number: int) -> str:
        messages: Any = [{"role": "user", "content": f"A JSON object with the square of {number} and its name."}]
        answer = client.chat.completions.create(
            model=MODEL, messages=messages, response_format={"type": "json_object"}, max_tokens=MOST, temperature=0
        ).choices[0]
        found = json.loads(answer.message.content or "") if answer.finish_reason == "stop" else None
        return "" if isinstance(found, dict) else str(answer)

    return tally(one, range(5))


def others() -> str:
    """regex, grammar, json_schema, and vLLM's structured_outputs, in chats and completions."""
    bodies: list[tuple[Any, str]] = [
        ({"regex": "[A-Z]{3}-[0-9]{2}"}, r"[A-Z]{3}-\d\d"),
        ({"grammar": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 5}}, "[345]"),
        ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
        ({"structured_outputs": {"regex": "a{2,3}"}}, "a{2,3}"),
        ({"structured_outputs": {"json": {"const": "x"}}}, '"x"'),
    ]
    seen = []
    for body, pattern in bodies:
        messages: Any = [{"role": "user", "content": "Which?"}]
        answers = [
            client.chat.completions.create(model=MODEL, messages=messages, max_tokens=30, extra_body=body)
            .choices[0]
            .message.content,
            client.completions.create(model=MODEL, prompt="Which?", max_tokens=30, extra_body=body).choices[0].text,
        ]
        expect(all(re.fullmatch(pattern, text or "") for text in answers), (body, answers))
        seen += answers
    return str(seen)


def not_enforced() -> str:
    """a keyword that cannot be enforced is refused by its name."""
    schema = {"type": "object", "not": {"required": ["a"]}}
    body: Any = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    messages: Any = [{"role": "user", "content": "Which?"}]
    try:
        client.chat.completions.create(model=MODEL, messages=messages, extra_body=body)
    except openai.BadRequestError as error:
        expect("not" in str(error), error)
        return str(error.message)[:120]
    raise Fault("was answered")


def cut() -> str:
    """.parse of an answer that max_tokens cuts raises the client's own error."""
    fields = asked((Person, "Ada is 36.")) | {"max_tokens": 5}
    try:
        client.chat.completions.parse(**fields)
    except openai.LengthFinishReasonError as error:
        return type(error).__name__
    raise Fault("was parsed")


CALLS = (parse, stream, objects, others, not_enforced, cut)

if __name__ == "__main__":
    sys.exit(run(f"openai {openai.__version__}", CALLS))
