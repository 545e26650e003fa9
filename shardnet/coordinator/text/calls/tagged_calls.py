"""Calls written as tags, one for each argument: Qwen3-Coder, GLM, MiniMax-M2, DeepSeek V3.2, Seed-OSS, MiniCPM5, Kimi-K3.

The values are texts; which of them are numbers, lists and so on is told by the tool's schema.
Source: the chat templates of these models.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardnet.coordinator.text.calls.sink import Calls
from shardnet.coordinator.text.calls.source import Broken, Source, Steps

_NUMBER = re.compile(r"[0-9]{0,3}")
_NAME = re.compile(r"\s*[\w./:-]{0,256}\s*")
_RAW = ("<![CDATA[", "]]>")
"""MiniCPM puts it around texts with signs of XML."""
_KEY = re.compile(r"[^<>\n]{0,256}\s*")


@dataclass(frozen=True, slots=True)
class TaggedCalls:
    """One such format.

    Attributes:
        marks: what opens calls (a section, or a call by itself), each with what closes the section, or nothing.
        begin: opens each call within a section; empty where a call's mark opens calls.
        name_ends: marks behind the name; those that are a key's or the call's own mark stay for what reads these.
        key: opens an argument, `key_ends` stand behind its name, each with whether the value is a plain text, if it says so.
        value_end: closes a value; `end` closes the call.
        head_end: stands behind the call's number, which then follows the name's end; empty where calls have no number.
        escapes: names of arguments have `&quot;` and `&amp;` in them, as in HTML.
    """

    marks: dict[str, str]
    begin: str
    name_ends: tuple[str, ...]
    key: str
    key_ends: dict[str, bool | None]
    value_end: str
    end: str
    value_begin: str = ""
    written: tuple[str, str] = ("", "")
    """White space in front of a value and behind it, as the model writes it."""
    head_end: str = ""
    escapes: bool = False

    def read(self, source: Source, calls: Calls, opened: str) -> Steps[None]:
        """Take calls up to what closes them. Raises: Broken."""
        if not self.begin:
            yield from self._call(source, calls)
            return
        close = self.marks[opened]
        yield from source.space()
        yield from source.expect(self.begin)
        while True:
            yield from self._call(source, calls)
            yield from source.space()
            if (yield from source.accept(*(one for one in (close, self.begin) if one))) != self.begin:
                return

    def _call(self, source: Source, calls: Calls) -> Steps[None]:
        name, mark = yield from source.until(*self.name_ends, like=_NAME)
        name = name.strip()
        if not name:
            raise Broken
        if self.head_end:
            yield from source.until(self.head_end, like=_NUMBER)
        at_key = mark == self.key
        is_over = mark == self.end
        known = properties_of(calls.tools.get(name, {}))
        calls.begin(name)
        calls.arguments("{")
        count = 0
        while not is_over:
            if at_key:
                key, text = yield from self._argument(source, known)
                calls.arguments(f"{', ' if count else ''}{json.dumps(key, ensure_ascii=False)}: {text}")
                count += 1
            yield from source.space()
            at_key = yield from self._at_key(source)
            is_over = not at_key
        calls.arguments("}")
        calls.end()

    def _at_key(self, source: Source) -> Steps[bool]:
        """Take what opens an argument, or closes the call. Returns: which."""
        return (yield from source.expect(self.key, self.end)) == self.key

    def _argument(self, source: Source, known: Mapping[str, Any]) -> Steps[tuple[str, str]]:
        key, mark = yield from source.until(*self.key_ends, like=_KEY)
        if self.value_begin:
            yield from source.space()
            yield from source.expect(self.value_begin)
        text, _ = yield from source.until(self.value_end)
        is_text, key = self.key_ends[mark], html.unescape(key.strip()) if self.escapes else key.strip()
        if text.startswith(_RAW[0]) and text.endswith(_RAW[1]):
            text = text[len(_RAW[0]) : -len(_RAW[1])]
        if self.written[0] and text.startswith(self.written[0]):
            text = text.removeprefix(self.written[0])
            text = text.removesuffix(self.written[1])
        return key, as_json(text, known.get(key), is_text)


def properties_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns: the arguments that a tool's schema names, each with its own schema."""
    properties = schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def as_json(text: str, schema: Any, is_text: bool | None = None) -> str:
    """Returns: a value's text as JSON: as its schema says, else JSON where it is JSON, and a string where it is not."""
    kinds = kinds_of(schema)
    if is_text or (is_text is None and kinds == {"string"}):
        return json.dumps(text, ensure_ascii=False)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _as_python(text.strip())
        if value is None or (kinds and not isinstance(value, list | dict | bool)):
            return json.dumps(text, ensure_ascii=False)
    if "string" in kinds and not isinstance(value, str) and value is not None and not _is_one_of(value, kinds):
        return json.dumps(text, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def kinds_of(schema: Any) -> set[str]:
    """Returns: the JSON types that a schema names; none if it does not."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    kinds = (
        {named}
        if isinstance(named, str)
        else {one for one in named if isinstance(one, str)}
        if isinstance(named, list)
        else set()
    )
    for part in ("anyOf", "oneOf"):
        for one in schema.get(part) or () if isinstance(schema.get(part), list) else ():
            kinds |= kinds_of(one)
    values = schema.get("enum")
    if not kinds and isinstance(values, list) and values and all(isinstance(one, str) for one in values):
        return {"string"}
    return kinds


def _is_one_of(value: Any, kinds: set[str]) -> bool:
    own = {bool: {"boolean"}, int: {"integer", "number"}, float: {"number"}, list: {"array"}, dict: {"object"}}
    return bool(own.get(type(value), set()) & kinds)


def _as_python(text: str) -> Any:
    """Some templates write lists and truth as Python does."""
    try:
        value = ast.literal_eval(text) if len(text) < 1 << 14 else None
        json.dumps(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value
