"""Calls written as Python does: `[weather(city="Paris", days=2)]` between two marks (LFM2), or as JSON in the same place.

Source: the chat templates of these models.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

from shardnet.coordinator.text.calls.json_calls import JsonCalls
from shardnet.coordinator.text.calls.sink import Calls
from shardnet.coordinator.text.calls.source import Broken, Source, Steps

MAX_TEXT = 1 << 16
_NAMES = {"true": True, "false": False, "null": None}
_BEGINS = re.compile(r"[\w.]{0,256}(?:\(.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PythonCalls:
    """One such format.

    Attributes:
        marks: what opens calls, each with what closes them.
    """

    marks: dict[str, str]

    def read(self, source: Source, calls: Calls, opened: str) -> Steps[None]:
        """Take calls up to what closes them. Raises: Broken."""
        yield from source.space()
        if (yield from source.looking_at('[{"', "{")) is not None:
            yield from JsonCalls(self.marks).read(source, calls, opened)
            return
        if (yield from source.looking_at("[")) is None and not _BEGINS.fullmatch((yield from source.char())):
            raise Broken
        text, _ = yield from source.until(self.marks[opened])
        found = _calls_in(text)
        for name, arguments in found:
            calls.whole(name, arguments)


def _calls_in(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns: names and arguments. Raises: Broken if the text is no calls with literal keywords."""
    if len(text) > MAX_TEXT:
        raise Broken
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        made = [_one(node) for node in (tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree])]
        json.dumps(made)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise Broken from None
    if not made:
        raise Broken
    return made


def _one(node: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError
    return ast.unparse(node.func), {str(one.arg): _literal(one.value) for one in node.keywords if one.arg}


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(one) for one in items]
        case ast.Dict(keys=keys, values=values):
            return {str(_literal(key)): _literal(one) for key, one in zip(keys, values, strict=True) if key is not None}
        case _:
            return ast.literal_eval(node)
