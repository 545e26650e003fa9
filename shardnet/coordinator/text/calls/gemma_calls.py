"""Calls as gemma 4 writes them: `<|tool_call>call:weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>`, or JSON between the same marks.

Source: the chat template of gemma 4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from shardnet.coordinator.text.calls import json_reading
from shardnet.coordinator.text.calls.json_calls import JsonCalls
from shardnet.coordinator.text.calls.json_reading import MAX_DEPTH
from shardnet.coordinator.text.calls.sink import Calls
from shardnet.coordinator.text.calls.source import Broken, Source, Steps

QUOTE = '<|"|>'
_NAME = re.compile(r"[\w./-]{0,256}")
_KEY = re.compile(r"[^{}\[\],:]{0,256}")


@dataclass(frozen=True, slots=True)
class GemmaCalls:
    """The format.

    Attributes:
        marks: what opens a call, and what closes it.
    """

    marks: dict[str, str]

    def read(self, source: Source, calls: Calls, opened: str) -> Steps[None]:
        """Take a call up to what closes it. Raises: Broken."""
        if (yield from source.accept("call:")) is None:
            yield from JsonCalls(self.marks).read(source, calls, opened)
            return
        name, _ = yield from source.until("{", like=_NAME)
        calls.whole(name, (yield from self._object(source, 0)))
        yield from source.space()
        yield from source.accept(self.marks[opened])

    def _value(self, source: Source, depth: int) -> Steps[Any]:
        if depth > MAX_DEPTH:
            raise Broken
        yield from source.space()
        opened = yield from source.accept(QUOTE, "{", "[")
        if opened == QUOTE:
            text, _ = yield from source.until(QUOTE)
            return text
        if opened == "{":
            return (yield from self._object(source, depth + 1))
        if opened == "[":
            return (yield from self._list(source, depth + 1))
        return json_reading.parsed((yield from json_reading.value(source)))

    def _object(self, source: Source, depth: int) -> Steps[dict[str, Any]]:
        made: dict[str, Any] = {}
        yield from source.space()
        if (yield from source.accept("}")) is not None:
            return made
        while True:
            yield from source.space()
            if (yield from source.accept(QUOTE)) is not None:
                key, _ = yield from source.until(QUOTE)
                yield from source.expect(":")
            else:
                key, _ = yield from source.until(":", like=_KEY)
            made[key.strip().strip('"')] = yield from self._value(source, depth)
            yield from source.space()
            if (yield from source.expect(",", "}")) == "}":
                return made

    def _list(self, source: Source, depth: int) -> Steps[list[Any]]:
        made: list[Any] = []
        yield from source.space()
        if (yield from source.accept("]")) is not None:
            return made
        while True:
            made.append((yield from self._value(source, depth)))
            yield from source.space()
            if (yield from source.expect(",", "]")) == "]":
                return made
