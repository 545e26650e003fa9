"""Which format a model writes, found from its chat template: a call that the template wrote is read by every known format, and the first that finds
the same call is it. Where a template writes no calls, the marks that it spells out decide. Pure.
"""

from __future__ import annotations

import json
from dataclasses import replace

from shardnet.coordinator.text.calls.answer import AnswerFormat, AnswerParser, Thinking
from shardnet.coordinator.text.calls.events import CallArguments, CallBegun, CallDone
from shardnet.coordinator.text.calls.known import GENERIC, KNOWN, LLAMA, THINKING, WRAPS, Known
from shardnet.coordinator.text.calls.sink import mistral_id


def format_of(words: str, example: str | None, call: tuple[str, dict[str, object]]) -> AnswerFormat:
    """Choose the format of a template.

    Args:
        words: all that the template's source says.
        example: a conversation with a call, as the template writes it; None if it writes none.
        call: name and arguments of that call.

    Returns: the format; that of Harmony where answers have channels.
    """
    pairs = tuple(pair for pair in THINKING if pair[1] in words and (pair[0] in words or pair[0] == "<think>"))
    wraps = tuple(one for one in WRAPS if one in words)
    if "<|channel|>" in words and "<|message|>" in words:
        return AnswerFormat("harmony", harmony=True)
    known = _by_example(example, call) if example is not None else None
    writes_calls = known is not None
    known = known or next((one for one in KNOWN if all(mark in words for mark in one.evidence)), GENERIC)
    thinking, wraps = Thinking((*known.thinking, *pairs)), (*known.wraps, *wraps)
    found = AnswerFormat(
        known.name,
        known.calls,
        thinking,
        wraps=wraps,
        opened=known.opened,
        text_begins=known.text_begins,
        writes_calls=writes_calls,
    )
    return replace(found, make_id=mistral_id) if known.name.startswith("mistral") else found


def _by_example(example: str, call: tuple[str, dict[str, object]]) -> Known | None:
    name, arguments = call
    for one in KNOWN:
        if not any(mark in example for mark in one.calls.marks) and one.calls is not LLAMA:
            continue
        begins = example.rfind("{", 0, example.find(name, example.rfind(name) - 1)) if one.calls is LLAMA else 0
        parser = AnswerParser(AnswerFormat(one.name, one.calls), {name: {}})
        events = [*parser.push(example[max(0, begins) :]), *parser.end()]
        begun = {event.index for event in events if isinstance(event, CallBegun) and event.name == name}
        for index in begun & {event.index for event in events if isinstance(event, CallDone)}:
            text = "".join(event.text for event in events if isinstance(event, CallArguments) and event.index == index)
            if json.loads(text) == arguments:
                return one
    return None
