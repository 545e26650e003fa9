"""What a chat asks of tools: OpenAI's shapes, every part of them honoured or refused by name. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shardnet.errors import UsageError

Choice = Literal["none", "auto", "required"]
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
"""OpenAI's API takes 64 characters, Anthropic's 128: names of MCP tools, with their server's before them, have more than 64 at times."""


@dataclass(frozen=True, slots=True)
class Function:
    """One function that was offered.

    Attributes:
        schema: of its arguments.
        strict: they are to fit it, whatever the model would write.
    """

    name: str
    schema: Mapping[str, Any]
    strict: bool


@dataclass(frozen=True, slots=True)
class ToolsAsked:
    """The tools of a chat, and what is wanted of them.

    Attributes:
        offered: as the client sent them, for the template.
        choice: `required` also where one function is named; `functions` holds only that one then.
        parallel: the model may call several at once.
    """

    offered: Sequence[Any]
    functions: tuple[Function, ...]
    choice: Choice
    parallel: bool = True

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """The functions that may be called, each with the schema of its arguments."""
        return {one.name: one.schema for one in self.functions}

    @property
    def is_enforced(self) -> bool:
        """True if calls are held to their schemas while the model writes them."""
        return self.choice == "required" or (self.choice == "auto" and any(one.strict for one in self.functions))


def tools_asked(tools: Sequence[Any] | None, choice: Any, parallel: bool | None) -> ToolsAsked | None:
    """Read the fields `tools`, `tool_choice` and `parallel_tool_calls` of a request.

    Returns: what is asked for; None where no tools are.
    Raises: UsageError naming what is wrong, or cannot be done.
    """
    functions = [_function(at, one) for at, one in enumerate(tools or ())]
    names = [one.name for one in functions]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise UsageError(f"tools: two functions are named {twice!r}", param="tools")
    wanted, named = _choice(choice)
    if not functions:
        if wanted == "required":
            raise UsageError(
                "tool_choice: there are no tools to call: give some in the field 'tools'", param="tool_choice"
            )
        return None
    if named is not None:
        functions = [one for one in functions if one.name == named]
        if not functions:
            raise UsageError(f"tool_choice: no function {named[:64]!r} is among the tools", param="tool_choice")
    several = parallel is not False if named is None else parallel is True
    return ToolsAsked(list(tools or ()), tuple(functions), wanted, several)


def _function(at: int, tool: Any) -> Function:
    where = f"tools.{at}"
    if not isinstance(tool, dict):
        raise UsageError(f"{where}: a tool is an object with a type and a function", param="tools")
    if tool.get("type", "function") != "function":
        raise UsageError(
            f"{where}: a tool of type {str(tool['type'])[:64]!r} is not supported: only functions are", param="tools"
        )
    function = tool.get("function")
    if not isinstance(function, dict):
        raise UsageError(f"{where}: the function is missing", param="tools")
    name, schema = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"{where}.function.name: 1 to 128 letters, digits, '_', '-' and '.' are a name", param="tools")
    if schema is not None and not isinstance(schema, dict):
        raise UsageError(f"{where}.function.parameters: a JSON schema is an object", param="tools")
    if schema and schema.get("type", "object") != "object":
        raise UsageError(f"{where}.function.parameters: arguments are of type 'object'", param="tools")
    return Function(name, schema or {"type": "object", "properties": {}}, function.get("strict") is True)


def _choice(choice: Any) -> tuple[Choice, str | None]:
    if choice is None:
        return "auto", None
    if choice in ("none", "auto", "required"):
        return choice, None
    if isinstance(choice, dict) and choice.get("type") == "function":
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        if isinstance(name, str):
            return "required", name
    raise UsageError(
        "tool_choice: give 'none', 'auto', 'required', or "
        '{"type": "function", "function": {"name": ...}}; nothing else is supported',
        param="tool_choice",
    )
