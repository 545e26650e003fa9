"""Calls through real chat templates: which format each template writes, and whether a call that it writes is read back as it was.

    python tests/bench/call_table.py FOLDER [--details]

FOLDER holds Jinja files, such as `models/templates` of llama.cpp's sources. Each template writes a call, another, and both, without and behind a
text; the answer's part of it is read character by character. What templates leave out or refuse is counted apart. Then a conversation of call and
result is rendered with the call as it was read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from shardnet.coordinator.text.calls.answer import AnswerParser
from shardnet.coordinator.text.calls.events import CallArguments, CallBegun, CallDone, Content, Event, Reasoning
from shardnet.coordinator.text.template import ChatTemplate
from shardnet.errors import ShardnetError

Json = dict[str, Any]
QUESTION = "What will the weather be?"
TOOL: Json = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What the weather will be.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
    },
}
CALLS: list[Json] = [{"city": "Pa\"ris' <é>", "days": 2, "tags": ["a", "ö"]}, {"city": "Rom"}]


def message(calls: list[Json], text: str = "") -> Json:
    """Returns: an assistant's message with these arguments of calls."""
    made = [
        {
            "id": f"call{number:05}",
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps(one, ensure_ascii=False)},
        }
        for number, one in enumerate(calls)
    ]
    return {"role": "assistant", "content": text, "tool_calls": made}


async def text_of(template: ChatTemplate, messages: list[Json], *, begins: bool) -> str:
    """Returns: the conversation as the template writes it."""
    parts = await template.render(messages, tools=[TOOL], begins_answer=begins, timeout_s=20)
    return "".join(part.text for part in parts)


def read(parser: AnswerParser, text: str) -> tuple[list[Json], str]:
    """Returns: the arguments of the calls that are found, and the texts."""
    events: list[Event] = []
    for char in text:
        events += parser.push(char)
    events += parser.end()
    whole = {event.index for event in events if isinstance(event, CallDone)}
    names = {event.index: event.name for event in events if isinstance(event, CallBegun)}
    texts: dict[int, str] = {index: "" for index in whole if names[index] == "weather"}
    for event in events:
        if isinstance(event, CallArguments) and event.index in texts:
            texts[event.index] += event.text
    return [json.loads(text) for text in texts.values()], "".join(
        event.text for event in events if isinstance(event, Content | Reasoning)
    )


async def outcome(template: ChatTemplate, calls: list[Json], text: str) -> str:
    """Returns: `same`, or what came in its place."""
    asked: list[Json] = [{"role": "user", "content": QUESTION}]
    format = await template.answers(tools=True, timeout_s=20)
    try:
        begun = await text_of(template, asked, begins=True)
        written = await text_of(template, [*asked, message(calls, text)], begins=False)
    except ShardnetError as error:
        return f"refused by the template: {str(error)[-60:]}"
    answer = written[written.rindex(QUESTION) + len(QUESTION) :]
    answer = answer.removeprefix(begun[begun.rindex(QUESTION) + len(QUESTION) :])
    if "weather" not in answer or (text and text not in answer):
        return f"left out by the template: {answer!r}"
    found, content = read(AnswerParser(format, {"weather": TOOL["function"]["parameters"]}), answer)
    if found != calls:
        return f"different: {found!r} {answer!r}"
    if text and text not in content:
        return f"text lost: {content!r}"
    results = [
        {"role": "tool", "tool_call_id": f"call{at:05}", "name": "weather", "content": f"{at} C"}
        for at, _ in enumerate(calls)
    ]
    try:
        again = await text_of(template, [*asked, message(found, text), *results], begins=True)
    except ShardnetError as error:
        return f"result refused: {str(error)[-60:]}"
    return "same" if all(one["content"] in again for one in results) else "result lost"


async def table(sources: dict[str, str], *, details: bool) -> Counter[str]:
    """Print each template's line. Returns: how often each outcome came."""
    totals: Counter[str] = Counter()
    for name, source in sources.items():
        try:
            template = ChatTemplate(source, model=name, bos="<s>", eos="</s>")
            format = await template.answers(tools=True, timeout_s=20)
        except ShardnetError as error:
            print(f"{name}: {error}")
            continue
        outcomes = [
            await outcome(template, calls, text)
            for text in ("", "Let me look.")
            for calls in (CALLS[:1], CALLS[1:], CALLS)
        ]
        kind = format.name if format.shows_tools else f"{format.name} (tools told in words)"
        thinks = ", ".join(opened for opened, _ in format.thinking.pairs) or ("channels" if format.harmony else "-")
        print(f"{name} | {kind} | {thinks} | {Counter(one.partition(':')[0] for one in outcomes)}")
        if details:
            print("\n".join(f"    {one[:900]}" for one in outcomes if one != "same"))
        totals.update(one.partition(":")[0] for one in outcomes)
    return totals


def main() -> int:
    """Print the table. Returns: 1 if a call came back as another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--details", action="store_true", help="what is not the same")
    asked = parser.parse_args()
    totals = asyncio.run(
        table({one.stem: one.read_text() for one in sorted(asked.folder.glob("*.jinja"))}, details=asked.details)
    )
    print(dict(totals))
    return int(bool(totals["different"]))


if __name__ == "__main__":
    sys.exit(main())
