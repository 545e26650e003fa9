"""Calls written as tags named like the arguments, objects and lists as tags within tags, each behind one mark: MiniMax-M3.

`M<invoke name="f">M<city>ParisM</city>M<tags>M<item>aM</item>M</tags>M</invoke>`, M being the mark. The tool's schema tells what texts are.
Source: the chat template of MiniMax-M3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardnet.coordinator.text.calls.json_reading import MAX_DEPTH
from shardnet.coordinator.text.calls.sink import Calls
from shardnet.coordinator.text.calls.source import Broken, Source, Steps
from shardnet.coordinator.text.calls.tagged_calls import as_json, kinds_of, properties_of

_NAME = re.compile(r"[\w./:-]{0,256}")
_TAG = re.compile(r"[^<>\n]{0,256}")


@dataclass(frozen=True, slots=True)
class NestedTags:
    """The format.

    Attributes:
        marks: what opens a section of calls, and what closes it.
        mark: stands before each tag.
        item: the tag of an element of a list.
    """

    marks: dict[str, str]
    mark: str
    item: str = "item"

    @property
    def begin(self) -> str:
        """What opens a call; the name and `">` follow."""
        return f'{self.mark}<invoke name="'

    def written(self, value: Any) -> str:
        """Returns: a value as the model writes it."""
        if isinstance(value, Mapping):
            return "".join(self._within(key, one) for key, one in value.items() if one is not None)
        if isinstance(value, list):
            return "".join(self._within(self.item, one) for one in value)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def _within(self, tag: str, value: Any) -> str:
        return f"{self.mark}<{tag}>{self.written(value)}{self.mark}</{tag}>"

    def read(self, source: Source, calls: Calls, opened: str) -> Steps[None]:
        """Take calls up to what closes them. Raises: Broken."""
        close = self.marks[opened]
        yield from source.space()
        yield from source.expect(self.begin)
        while True:
            yield from self._call(source, calls)
            yield from source.space()
            if (yield from source.accept(close, self.begin)) != self.begin:
                return

    def _call(self, source: Source, calls: Calls) -> Steps[None]:
        name, _ = yield from source.until('">', like=_NAME)
        calls.begin(name)
        calls.arguments("{")
        known, before = calls.tools.get(name, {}), ""
        while (key := (yield from self._tag(source))) != "/invoke":
            text = yield from self._value(source, key, _schema_of(known, key), 0)
            calls.arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: {text}")
            before = ", "
        calls.arguments("}")
        calls.end()

    def _tag(self, source: Source) -> Steps[str]:
        """Take the next tag. Returns: what stands between its signs."""
        yield from source.space()
        yield from source.expect(f"{self.mark}<")
        tag, _ = yield from source.until(">", like=_TAG)
        return tag

    def _value(self, source: Source, key: str, schema: Any, depth: int) -> Steps[str]:
        """Take a value and the tag that closes it. Returns: its JSON text."""
        if depth > MAX_DEPTH:
            raise Broken
        text, _ = yield from source.until(f"{self.mark}<")
        tag, _ = yield from source.until(">", like=_TAG)
        if tag == f"/{key}":
            return as_json(text, schema) if text else _empty(schema)
        if text.strip():
            raise Broken
        kinds, names, values = kinds_of(schema), list[str](), list[str]()
        is_list = tag == self.item and (kinds & {"array", "object"}) != {"object"}
        while tag != f"/{key}":
            within = schema.get("items") if is_list and isinstance(schema, Mapping) else _schema_of(schema, tag)
            names.append(json.dumps(tag, ensure_ascii=False))
            values.append((yield from self._value(source, tag, within, depth + 1)))
            tag = yield from self._tag(source)
        if is_list:
            return f"[{', '.join(values)}]"
        return "{" + ", ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True)) + "}"


def _schema_of(schema: Any, key: str) -> Any:
    """Returns: what a schema says of a key; None if nothing."""
    if not isinstance(schema, Mapping):
        return None
    return properties_of(schema).get(key, schema.get("additionalProperties"))


def _empty(schema: Any) -> str:
    """Returns: what no text is by a schema."""
    kinds = kinds_of(schema)
    return "[]" if kinds == {"array"} else "{}" if kinds == {"object"} else '""'
