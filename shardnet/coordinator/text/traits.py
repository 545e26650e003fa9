"""What a chat template takes and shows, found by asking it: small conversations are rendered, and their words looked for in the text.

Templates say nowhere which roles they know, whether a system text may come twice, or whether a call's arguments are a text or a mapping.
Each question is asked once for a template, when the first conversation needs the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import jinja2

from shardnet.coordinator.text.jinja import RefusedByTemplate

FAULTS = (
    jinja2.TemplateError,
    RefusedByTemplate,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
)
"""What a template ends with when it does not take a conversation."""
Message = dict[str, Any]
_NAME, _KEY, _VALUE, _RESULT, _ID = "needlename", "needlekey", "needlevalue", "needleresult", "call00001"
EXAMPLE_CALL: tuple[str, dict[str, Any]] = (_NAME, {_KEY: _VALUE})
"""Name and arguments."""
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {_KEY: {"type": "string", "description": "d"}},
            "required": [_KEY],
        },
    },
}
_ANSWER = {"role": "tool", "tool_call_id": _ID, "name": _NAME, "content": _RESULT}


class Render(Protocol):
    """Renders messages. Tools and documents that are not there are none where `as_none` is set, else undefined. Raises: one of `FAULTS`."""

    def __call__(self, messages: Sequence[Message], *, tools: Sequence[Any] | None, as_none: bool) -> str: ...


class Traits:
    """Answers of one template.

    Args:
        render: the template.
        source: all that it says.
    """

    def __init__(self, render: Render, source: str) -> None:
        self._render = render
        self._source = source

    @cached_property
    def takes_none(self) -> bool:
        """`tools` and `documents` may be none where there are none, as transformers has it; else they must not be there at all."""
        try:
            self._render([_said("user", "x")], tools=None, as_none=True)
        except FAULTS:
            return False
        return True

    @cached_property
    def wants_parts(self) -> bool:
        """Contents are shown only as lists of parts, not as texts."""
        return not self._shows([_said("user", "needleone")], "needleone") and self._shows(
            [{"role": "user", "content": [{"type": "text", "text": "needleone"}]}], "needleone"
        )

    @cached_property
    def system(self) -> bool:
        """A system text at the beginning is shown."""
        return self._shows([self._said("system", "needleone"), self._said("user", "needletwo")], "needleone")

    @cached_property
    def several_systems(self) -> bool:
        """A second system text right behind the first is shown too."""
        messages = [self._said("system", "needleone"), self._said("system", "needletwo"), self._said("user", "x")]
        return self._shows(messages, "needleone", "needletwo")

    @cached_property
    def late_system(self) -> bool:
        """A system text in the middle of a conversation is shown."""
        messages = [self._said("system", "x"), self._said("user", "x"), self._said("assistant", "x")]
        return self._shows([*messages, self._said("system", "needleone"), self._said("user", "x")], "needleone")

    @cached_property
    def developer(self) -> bool:
        """The template speaks of the role `developer` and shows its text."""
        messages = [self._said("developer", "needleone"), self._said("user", "x")]
        return "developer" in self._source and self._shows(messages, "needleone")

    @cached_property
    def tools(self) -> bool:
        """Tools are shown."""
        return self._shows([self._said("user", "x")], _NAME, tools=[_TOOL])

    @cached_property
    def call_example(self) -> str | None:
        """A conversation in which `EXAMPLE_CALL` is called, as the template writes it; None if it does not take one."""
        arguments: Any = {_KEY: _VALUE} if self.takes_mapping_arguments else f'{{"{_KEY}": "{_VALUE}"}}'
        return self._with_call(arguments)

    @cached_property
    def takes_text_arguments(self) -> bool:
        """A call's arguments as a JSON text are written as they are, not quoted once more."""
        text = self._with_call(f'{{"{_KEY}": "{_VALUE}"}}')
        return text is not None and _VALUE in text and f'\\"{_KEY}' not in text

    @cached_property
    def takes_mapping_arguments(self) -> bool:
        """A call's arguments as a mapping are written, and not as Python writes one."""
        text = self._with_call({_KEY: _VALUE})
        return text is not None and _VALUE in text and f"{{'{_KEY}'" not in text

    @cached_property
    def needs_content(self) -> bool:
        """A message that calls tools must have a content, if an empty one."""
        for arguments in ({_KEY: _VALUE}, f'{{"{_KEY}": "{_VALUE}"}}'):
            for more in ([_ANSWER], []):
                without, given = (
                    self._try([*self._called(arguments, content=one), *more], tools=[_TOOL]) for one in (False, True)
                )
                if without is None and given is not None:
                    return True
        return False

    def _said(self, role: str, text: str) -> Message:
        return {"role": role, "content": [{"type": "text", "text": text}]} if self.wants_parts else _said(role, text)

    def _called(self, arguments: Any, *, content: bool) -> list[Message]:
        function = {"name": _NAME, "arguments": arguments}
        call: Message = {"role": "assistant", "tool_calls": [{"id": _ID, "type": "function", "function": function}]}
        return [self._said("user", "x"), call | ({"content": ""} if content else {})]

    def _with_call(self, arguments: Any) -> str | None:
        for content in (False, True):
            for more in ([_ANSWER], []):
                text = self._try([*self._called(arguments, content=content), *more], tools=[_TOOL])
                if text is not None:
                    return text
        return None

    def _shows(self, messages: Sequence[Message], *words: str, tools: Sequence[Any] | None = None) -> bool:
        text = self._try(messages, tools=tools)
        return text is not None and all(word in text for word in words)

    def _try(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None) -> str | None:
        try:
            return self._render(messages, tools=tools, as_none=self.takes_none)
        except FAULTS:
            return None


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": text}
