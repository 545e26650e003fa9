"""What was found in an answer, as OpenAI's messages and deltas have it: content, `reasoning_content`, `tool_calls`. Pure.

A whole message holds whole calls; what broke off is content there. A stream cannot take back what it sent: the text of a call that broke off comes as
content behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from shardnet.coordinator.text.calls.events import (
    CallArguments,
    CallBegun,
    CallBroken,
    CallDone,
    Content,
    Event,
    Reasoning,
)


def text_of(events: Iterable[Event]) -> str:
    """Returns: the content."""
    return "".join([event.text for event in events if isinstance(event, Content | CallBroken)])


def reasoning_of(events: Iterable[Event]) -> str:
    """Returns: the reasoning."""
    return "".join([event.text for event in events if isinstance(event, Reasoning)])


def calls_of(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Returns: the calls that are whole."""
    whole = {event.index for event in events if isinstance(event, CallDone)}
    return [one for index, one in sorted(_calls(events).items()) if index in whole]


def message_of(events: Sequence[Event]) -> dict[str, Any]:
    """Returns: the whole message. Its content is null where it says nothing but calls."""
    text, reasoning, calls = text_of(events), reasoning_of(events), calls_of(events)
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
    if reasoning:
        message["reasoning_content"] = reasoning
    return message | {"tool_calls": calls} if calls else message


def delta_of(events: Sequence[Event]) -> dict[str, Any]:
    """Returns: what came since the last delta, each call with its index."""
    text, reasoning, calls = text_of(events), reasoning_of(events), _calls(events)
    delta: dict[str, Any] = {"reasoning_content": reasoning} if reasoning else {}
    if calls:
        delta["tool_calls"] = [{"index": index} | one for index, one in sorted(calls.items())]
    return delta | {"content": text} if text or not delta else delta


def _calls(events: Iterable[Event]) -> dict[int, dict[str, Any]]:
    """Returns: what is told of each call: its beginning, where that is told, and its arguments."""
    calls: dict[int, dict[str, Any]] = {}
    for event in events:
        match event:
            case CallBegun(index, call_id, name):
                calls[index] = {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
            case CallArguments(index, text):
                calls.setdefault(index, {"function": {"arguments": ""}})["function"]["arguments"] += text
            case _:
                pass
    return calls
