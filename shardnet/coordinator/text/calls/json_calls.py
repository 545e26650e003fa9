"""Calls written as JSON: `{"name": ..., "arguments": {...}}`, one, several, or a list, mostly between two marks.

Hermes, Qwen2.5 and 3, Granite, Nemotron, Mistral before 2025, Command-R, Llama 3.x (bare), and whatever is not known by name.
Source: the chat templates of these models; Meta's prompt formats for Llama 3.1; Mistral's tokenizer v3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shardnet.coordinator.text.calls import json_reading
from shardnet.coordinator.text.calls.sink import Calls
from shardnet.coordinator.text.calls.source import Broken, Source, Steps

NAMES = frozenset({"name", "tool_name", "function", "function_name", "tool"})
ARGUMENTS = frozenset({"arguments", "parameters", "args", "input"})
IDS = frozenset({"id", "tool_call_id", "call_id"})
FURTHER = frozenset({"type", "index", "description", "thought"})
"""Keys that a call may have beside these, and nothing else that is meant as a call without a mark."""


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """One such format.

    Attributes:
        marks: what opens calls, each with what closes it; a close that is empty, or does not come, is the end of the answer.
        bare: what may open calls at the very beginning of an answer, with no mark. Only offered names count there.
        name_key, arguments_key: as the model writes them.
        as_list: the model writes a list, also of one.
        name_is_key: `{"weather": {...}}` (Apertus).
        is_bare: the model writes no mark by itself.
    """

    marks: dict[str, str]
    bare: dict[str, str] = field(default_factory=dict)
    name_key: str = "name"
    arguments_key: str = "arguments"
    as_list: bool = False
    name_is_key: bool = False
    is_bare: bool = False
    spelled: tuple[str, str] = ("", "")
    """Around a call between the marks, as the model spaces it."""
    between: str = ""

    def read(self, source: Source, calls: Calls, opened: str) -> Steps[None]:
        """Take calls up to what closes them. Raises: Broken."""
        is_bare = opened not in self.marks
        close = self.bare[opened] if is_bare else self.marks[opened]
        yield from source.space()
        in_list = (yield from source.accept("[")) is not None
        while True:
            yield from source.space()
            yield from self._object(source, calls, only_known=is_bare)
            yield from source.space()
            if in_list:
                if (yield from source.expect(",", "]")) == ",":
                    continue
                in_list = False
                yield from source.space()
            if source.is_empty and source.ended:
                return
            further = yield from source.accept(*(one for one in (close, ";", ",") if one))
            if further is not None and further == close:
                return
            yield from source.space()
            following = yield from source.looking_at("{", "[")
            if following is None or (is_bare and not close and further is None and following != "{"):
                return
            in_list = (yield from source.accept("[")) is not None

    def _object(self, source: Source, calls: Calls, *, only_known: bool, name: str | None = None) -> Steps[None]:
        yield from source.expect("{")
        call_id: str | None = None
        early: str | None = None
        while True:
            yield from source.space()
            key = yield from json_reading.string(source)
            yield from source.space()
            yield from source.expect(":")
            yield from source.space()
            first = yield from source.char()
            if self.name_is_key and name is None and not calls.is_open and first == "{":
                name = key
                self._begin(calls, name, call_id, only_known)
                yield from json_reading.value(source, calls.arguments)
            elif key in NAMES and first == '"' and name is None:
                name = yield from json_reading.string(source)
                if only_known and name not in calls.tools:
                    raise Broken
            elif key in NAMES and first == "{" and name is None:
                yield from self._object(source, calls, only_known=only_known)
                name = ""
            elif key in ARGUMENTS and not calls.is_open and early is None:
                if name:
                    self._begin(calls, name, call_id, only_known)
                    yield from self._arguments(source, calls)
                else:
                    early = _as_object((yield from json_reading.value(source)))
            elif key in IDS and first == '"':
                call_id = yield from json_reading.string(source)
            elif only_known and key not in FURTHER | IDS:
                raise Broken
            else:
                yield from json_reading.value(source)
            yield from source.space()
            if (yield from source.expect(",", "}")) == "}":
                break
        if name is None:
            raise Broken
        if name and not calls.is_open:
            self._begin(calls, name, call_id, only_known)
            calls.arguments("{}" if early is None else early)
        if calls.is_open:
            calls.end()

    def _begin(self, calls: Calls, name: str, call_id: str | None, only_known: bool) -> None:
        if only_known and name not in calls.tools:
            raise Broken
        calls.begin(name, call_id if call_id and len(call_id) > 2 else None)

    def _arguments(self, source: Source, calls: Calls) -> Steps[None]:
        if (yield from source.char()) == "{":
            yield from json_reading.value(source, calls.arguments)
        else:
            calls.arguments(_as_object((yield from json_reading.value(source))))


def _as_object(text: str) -> str:
    """Returns: arguments as a JSON object: some models write it as a text, or null for none."""
    found = json_reading.parsed(text)
    if isinstance(found, str):
        return found if found.strip() else "{}"
    return "{}" if found is None else text
