"""Tools for templates that show none: told in the system text, called and answered in plain words. Pure.

The words are those that Hermes and Qwen models were trained on, and others were shown. What is said here is a client's text like any other: no part
of it becomes a control token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_TOOLS = """You may call functions to help with the user's request. They are, one JSON a line:
<tools>
{tools}
</tools>"""
_HOW = """
To call one, answer with its name and its arguments as JSON, nothing else, between these tags:
<tool_call>
{"name": "function_name", "arguments": {"argument": "value"}}
</tool_call>
The result comes between <tool_response> tags."""


def with_tools_told(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], *, in_words: bool
) -> list[Mapping[str, Any]]:
    """Returns: the conversation with its tools told in the first system text.

    Args:
        in_words: its calls and results become texts too; else the template writes them.
    """
    told = _TOOLS.format(tools="\n".join(json.dumps(one, ensure_ascii=False) for one in tools))
    made = list(messages)
    if in_words:
        told, made = told + _HOW, _joined([_in_words(message) for message in messages])
    if made and made[0].get("role") in ("system", "developer"):
        return [dict(made[0]) | {"content": f"{made[0].get('content') or ''}\n\n{told}".strip()}, *made[1:]]
    return [{"role": "system", "content": told}, *made]


def _in_words(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content") or ""
    if message.get("role") in ("tool", "function"):
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return message
    text = "\n".join([content, *map(_call, calls)]).strip()
    return {"role": message.get("role"), "content": text}


def _call(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    name = function.get("name") if isinstance(function, Mapping) else None
    given = function.get("arguments") if isinstance(function, Mapping) else None
    arguments = given if isinstance(given, str) and given.strip() else json.dumps(given or {}, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}\n</tool_call>'


def _joined(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Several results are one message of the user: templates want turns to alternate."""
    made: list[Mapping[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if made and isinstance(content, str) and message.get("role") == made[-1].get("role") == "user":
            before = made[-1].get("content")
            if isinstance(before, str) and before.startswith("<tool_response>"):
                made[-1] = {"role": "user", "content": f"{before}\n{content}"}
                continue
        made.append(message)
    return made
