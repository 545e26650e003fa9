"""The arguments of a call as rules of a grammar: a JSON document, or a tag for each argument. Pure."""

from __future__ import annotations

import html
from collections.abc import Callable, Container, Mapping
from typing import Any

from shardnet.coordinator.text.calls.nested_tags import NestedTags
from shardnet.coordinator.text.calls.rules import Rules
from shardnet.coordinator.text.calls.tagged_calls import TaggedCalls, kinds_of, properties_of
from shardnet.errors import UsageError

_OF_THE_WHOLE = (
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "if",
    "$ref",
    "patternProperties",
    "dependentRequired",
    "dependentSchemas",
)
_OF_TEXTS = frozenset(
    {"type", "title", "description", "default", "examples", "enum", "const", "minLength", "maxLength"}
)
_OF_LISTS = frozenset({"type", "title", "description", "default", "examples", "items", "minItems", "maxItems"})
JsonRule = Callable[[str, Mapping[str, Any], Mapping[str, Any]], str]
ANY_ARGUMENTS = {"type": "object"}
_TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})


class ArgumentRules:
    """Writes them.

    Args:
        rules: where they are added.
        json_rule: a function's name, a schema, and another to be used where the former cannot be enforced and need not be -> what stands for the
            documents on the right side of a rule.
        strict: functions whose schema is enforced as a whole, or refused; of others what tags can be held to is.
    """

    def __init__(self, rules: Rules, json_rule: JsonRule, strict: Container[str]) -> None:
        self._rules = rules
        self._strict = strict
        self._json_rule = json_rule
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        return f"argument_{self._count}"

    def json(self, name: str, schema: Mapping[str, Any]) -> str:
        """Returns: the rule of a function's arguments as one JSON document."""
        return self._rules.add(self._name(), self._json_rule(name, schema, ANY_ARGUMENTS))

    def tagged(self, calls: TaggedCalls | NestedTags, name: str, schema: Mapping[str, Any]) -> str:
        """Returns: the rules of a function's arguments, one behind the other. Raises: UsageError for what tags cannot be held to."""
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        return self._properties(calls, name, schema, shared)

    def _properties(
        self, calls: TaggedCalls | NestedTags, name: str, schema: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> str:
        for key in _OF_THE_WHOLE:
            if key in schema:
                self._cannot(name, key)
        required = schema.get("required") or []
        if not isinstance(required, list):
            self._cannot(name, "required, which is no list,")
            required = []
        known = properties_of(schema)
        if missing := [key for key in required if key not in known]:
            self._cannot(name, f"required: {missing[0]}")
        made = []
        for key, one in known.items():
            if not isinstance(one, Mapping):
                self._cannot(name, f"properties/{key}")
                continue
            argument = self._argument(calls, name, key, one, shared)
            made.append(argument if key in required else f"{argument}?")
        return " ".join(made)

    def _nested(
        self, calls: NestedTags, name: str, key: str, schema: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> str:
        kinds, end = kinds_of(schema), f"{calls.mark}</{key}>"
        closing = self._rules.text(end)
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list):
            options = " | ".join(self._rules.text(calls.written(one)) or '""' for one in values)
            value = f"({options}) {closing}"
        elif "$ref" in schema or len(kinds) != 1:
            self._cannot(name, f"properties/{key}: more than one type, or a reference,")
            value = self._rules.up_to(self._name(), end)
        elif kinds == {"string"}:
            value = self._text(name, key, schema, end)
        elif kinds == {"array"}:
            value = f"{self._items(calls, name, key, schema, shared)} {closing}"
        elif kinds == {"object"} and properties_of(schema):
            value = f"{self._properties(calls, name, schema, shared)} {closing}"
        elif kinds == {"object"}:
            self._cannot(name, f"properties/{key}: an object whose names are not told")
            value = self._rules.up_to(self._name(), end)
        else:
            value = f"{self._rules.add(self._name(), self._json_rule(name, {**schema, **shared}, _types_of(schema)))} {closing}"
        return self._rules.add(self._name(), f"{self._rules.text(f'{calls.mark}<{key}>')} {value}")

    def _items(
        self, calls: NestedTags, name: str, key: str, schema: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> str:
        """Returns: the rule of a list's elements."""
        within = schema.get("items")
        if unknown := sorted(set(schema) - _OF_LISTS):
            self._cannot(name, f"properties/{key}/{unknown[0]}")
        if not isinstance(within, Mapping):
            self._cannot(name, f"properties/{key}: a list whose elements are not told")
            within = {"type": "string"}
        one = self._nested(calls, name, calls.item, within, shared)
        return f"({one}){{{schema.get('minItems', 0)},{schema.get('maxItems', '')}}}"

    def _argument(
        self, calls: TaggedCalls | NestedTags, name: str, key: str, schema: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> str:
        if isinstance(calls, NestedTags):
            return self._nested(calls, name, key, schema, shared)
        is_text = kinds_of(schema) == {"string"} and "$ref" not in schema
        ends = [end for end, told in calls.key_ends.items() if told in (None, is_text)]
        before, behind = calls.written
        if calls.escapes:
            key = html.escape(key)
        options = [self._rules.text(f"{calls.key}{key}{end}") for end in ends]
        begun = options[0] if len(options) == 1 else f"({' | '.join(options)})"
        if calls.value_begin:
            begun += f" /\\n?/ {self._rules.text(calls.value_begin)}"
        end = behind + calls.value_end
        if is_text:
            value = self._text(name, key, schema, end)
        else:
            rule = self._rules.add(self._name(), self._json_rule(name, {**schema, **shared}, _types_of(schema)))
            value = f"{rule} {self._rules.text(end)}"
        return self._rules.add(self._name(), f"{begun} {self._rules.text(before)} {value} /\\n?/")

    def _text(self, name: str, key: str, schema: Mapping[str, Any], end: str) -> str:
        if unknown := sorted(set(schema) - _OF_TEXTS):
            self._cannot(name, f"properties/{key}/{unknown[0]}")
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list):
            options = " | ".join(self._rules.text(str(one)) or '""' for one in values)
            return f"({options}) {self._rules.text(end)}"
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        body = "/(?s:.*)/" if (least, most) == (0, "") else f"/(?s:.{{{least},{most}}})/"
        return self._rules.up_to(self._name(), end, body)

    def _cannot(self, name: str, what: str) -> None:
        if name in self._strict:
            raise UsageError(
                f"tools: function {name}: {what} of its parameters cannot be enforced in the way in which this model writes calls",
                param="tools",
            )


def _types_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns: what is left of an argument's schema if it cannot be enforced: the types that it names, or any."""
    kinds = kinds_of(schema) & _TYPES
    if kinds and schema.get("nullable") is True:
        kinds.add("null")
    return {"type": sorted(kinds)} if kinds else {}
