"""Calls written as a name between marks and then a JSON object: Mistral since 2025, DeepSeek R1 to V3.1, Kimi-K2, Functionary, Solar.

Source: the chat templates of these models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shardnet.coordinator.text.calls import json_reading
from shardnet.coordinator.text.calls.sink import Calls
from shardnet.coordinator.text.calls.source import Broken, Source, Steps

_WORD = re.compile(r"\s*[\w.:/-]{0,160}\s*")
_OF_ID = re.compile(r"(?:functions\.)?(?P<name>[\w./-]+?)(?::\d+)?")


@dataclass(frozen=True, slots=True)
class NamedCalls:
    """One such format.

    Attributes:
        marks: what opens calls (a section, or a call by itself), each with what closes it, or nothing.
        begin: opens each call within a section; empty where a call's mark opens calls.
        words: what stands before the arguments: role of a word -> the mark behind it -> role of what follows. Roles are `name`, `id`, `old` (a name
            that is a kind if another word follows it), `arguments`.
        first: role of the first word.
        end: what may stand behind the arguments.
        written: how the model writes a call, up to its arguments, with `NAME` and `ID`.
    """

    marks: dict[str, str]
    begin: str
    words: dict[str, dict[str, str]]
    end: tuple[str, ...]
    written: str
    first: str = "name"
    written_end: str = ""

    def read(self, source: Source, calls: Calls, opened: str) -> Steps[None]:
        """Take calls up to what closes them. Raises: Broken."""
        close = self.marks[opened]
        if self.begin:
            yield from source.space()
            yield from source.expect(self.begin)
        while True:
            yield from self._call(source, calls)
            if not self.begin:
                return
            yield from source.space()
            if (yield from source.accept(close, self.begin)) != self.begin:
                return

    def _call(self, source: Source, calls: Calls) -> Steps[None]:
        name, call_id, role = "", None, self.first
        while role != "arguments":
            word, mark = yield from source.until(*self.words[role], like=_WORD)
            if role == "id":
                call_id = word.strip()
            else:
                name = word.strip()
            role = self.words[role][mark]
            if role == "arguments" and "old" in self.words:
                yield from source.space()
                role = role if (yield from source.char()) == "{" else "old"
        if call_id and not name:
            found = _OF_ID.fullmatch(call_id)
            name = found["name"] if found else ""
        yield from source.space()
        if (yield from source.char()) != "{":
            raise Broken
        calls.begin(name, call_id)
        yield from json_reading.value(source, calls.arguments)
        calls.end()
        for mark in self.end:
            yield from source.space()
            yield from source.accept(mark)
