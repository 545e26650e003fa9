"""gpt-oss's answers: messages with a channel each. `analysis` is reasoning, `final` content, one addressed to `functions.NAME` a call.

Source: OpenAI's description of the Harmony response format, and the chat template of gpt-oss.
"""

from __future__ import annotations

import re

from shardnet.coordinator.text.calls import json_reading
from shardnet.coordinator.text.calls.events import Content, Reasoning
from shardnet.coordinator.text.calls.shown import Shown
from shardnet.coordinator.text.calls.sink import Calls
from shardnet.coordinator.text.calls.source import Broken, Source, Steps

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
_TO = re.compile(r"\bto=(?:functions\.)?([\w.-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
MAX_HEADER = 512


def read_answer(source: Source, calls: Calls, shown: Shown, *, with_calls: bool, in_reasoning: bool) -> Steps[None]:
    """Take an answer, message by message."""
    if in_reasoning:
        yield from _body(source, shown, "analysis")
    while not (source.is_empty and source.ended):
        if (yield from source.looking_at(START, CHANNEL, " to=", MESSAGE)) is None:
            yield from _body(source, shown, "final")  # no header: what the model says is what it means
            continue
        try:
            header = yield from _header(source)
        except Broken:
            source.go_back()
            shown.tell(source, Content, 1)
            continue
        channel, to = _CHANNEL.search(header), _TO.search(header)
        if to is not None and with_calls:
            yield from _call(source, calls, shown, to[1])
        else:
            yield from _body(source, shown, channel[1] if channel and to is None else "final")


def _header(source: Source) -> Steps[str]:
    """Returns: the marks and words before a message's text, marks as they are written. Raises: Broken if no text follows."""
    header = ""
    while True:
        rest = source.rest
        at = rest.find(MESSAGE)
        if at >= 0:
            header = rest[:at]
            source.take(at + len(MESSAGE))
            if len(header) > MAX_HEADER:
                raise Broken
            source.commit()
            return header
        if len(rest) > MAX_HEADER + len(MESSAGE):
            raise Broken
        yield from source.more()


def _body(source: Source, shown: Shown, channel: str) -> Steps[None]:
    """Tell a message's text up to its end."""
    yield from shown.until(source, Reasoning if channel == "analysis" else Content, (*ENDS, START, CHANNEL))
    yield from source.accept(*ENDS)
    source.commit()


def _call(source: Source, calls: Calls, shown: Shown, name: str) -> Steps[None]:
    try:
        yield from source.space()
        if (yield from source.char()) != "{":
            raise Broken
        calls.begin(name)
        yield from json_reading.value(source, calls.arguments)
        calls.end()
        yield from source.space()
        yield from source.accept(*ENDS)
        source.commit()
    except Broken:
        if calls.is_open:
            calls.broken()
        else:
            source.go_back()
            yield from _body(source, shown, "final")
