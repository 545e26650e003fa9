"""A client's messages as one template wants them: names that mean the same filled from each other, system texts where they are shown,
arguments of calls as text or mapping. Pure; every text keeps the message that it came from as its author.

Source: what transformers 5.24.0 does before it renders (null keys, reasoning), and the OpenAI API (arguments as a text, `developer`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shardnet.coordinator.text.provenance import TEMPLATE, author_of_message, authors_in, concat, written_by
from shardnet.coordinator.text.traits import Message, Traits
from shardnet.errors import UsageError

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
"""Names of roles are the API's words, not a client's: templates make control tokens of them (`<|user|>`)."""
_REASONING = ("reasoning_content", "thinking", "reasoning")
_BETWEEN = "\n\n"


def as_template_wants(
    messages: Sequence[Mapping[str, Any]], traits: Traits, *, shows_system: bool | None = None
) -> list[Message]:
    """Returns: the messages for the template, fresh in every part.

    Args:
        shows_system: False puts system texts into the first user message; by default they are where the template shows them.

    Raises: UsageError if the arguments of a call are not in a shape that the template takes.
    """
    made = [_traced(number, message) for number, message in enumerate(messages)]
    for number, message in enumerate(made):
        _fill_reasoning(message)
        _shape_calls(number, message, traits)
    made = _systems(made, traits, traits.system if shows_system is None else shows_system)
    return [_in_parts(message) for message in made] if traits.wants_parts else made


def _traced(number: int, message: Mapping[str, Any]) -> Message:
    made: Message = _written(author_of_message(number), {key: one for key, one in message.items() if one is not None})
    if message.get("role") in ROLES:
        made["role"] = written_by(TEMPLATE, str(message["role"]))
    return made


def _written(author: str, value: Any) -> Any:
    """Returns: a copy of the value with its texts by an author."""
    if isinstance(value, str):
        return written_by(author, value)
    if isinstance(value, Mapping):
        return {key: _written(author, one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_written(author, one) for one in value]
    return value


def _fill_reasoning(message: Message) -> None:
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if reasoning is not None:
        for key in _REASONING:
            message.setdefault(key, reasoning)


def _shape_calls(number: int, message: Message, traits: Traits) -> None:
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return
    if "content" not in message and traits.needs_content:
        message["content"] = written_by(author_of_message(number), "")
    for index, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, dict) and "arguments" in function:
            place = f"messages[{number}].tool_calls[{index}].function.arguments"
            function["arguments"] = _shaped(author_of_message(number), place, function["arguments"], traits)


def _shaped(author: str, place: str, arguments: Any, traits: Traits) -> Any:
    if isinstance(arguments, str):
        if traits.takes_text_arguments and not traits.takes_mapping_arguments:
            return arguments
        try:
            found = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            found = None
        if isinstance(found, dict):
            return _written(author, found)
        if traits.takes_text_arguments:
            return arguments
        raise UsageError(f"{place}: the chat template takes a JSON object here", param="messages")
    if isinstance(arguments, Mapping) and traits.takes_text_arguments and not traits.takes_mapping_arguments:
        return written_by(author, json.dumps(arguments, ensure_ascii=False))
    return arguments


def _systems(messages: list[Message], traits: Traits, shows_system: bool) -> list[Message]:
    """System texts where the template shows them."""
    if any(message.get("role") == "developer" for message in messages) and not traits.developer:
        for message in messages:
            if message.get("role") == "developer":
                message["role"] = written_by(TEMPLATE, "system")
    systems = [at for at, message in enumerate(messages) if message.get("role") == "system"]
    if not systems:
        return messages
    if not shows_system:
        return _into_first_user(messages, systems)
    leading = next((at for at, message in enumerate(messages) if message.get("role") != "system"), len(messages))
    moved = [at for at in systems if at > 0 and not (traits.several_systems if at < leading else traits.late_system)]
    if not moved:
        return messages
    first = messages[0] if leading else {"role": written_by(TEMPLATE, "system")}
    joined = first | {"content": _joined(([first] if leading else []) + [messages[at] for at in moved])}
    rest = [message for at, message in enumerate(messages) if at not in moved]
    return [joined, *rest[1 if leading else 0 :]]


def _into_first_user(messages: list[Message], systems: list[int]) -> list[Message]:
    rest = [message for at, message in enumerate(messages) if at not in systems]
    at = next((at for at, message in enumerate(rest) if message.get("role") == "user"), None)
    texts = [messages[one] for one in systems]
    if at is None:
        return [{"role": written_by(TEMPLATE, "user"), "content": _joined(texts)}, *rest]
    rest[at] = rest[at] | {"content": _joined([*texts, rest[at]])}
    return rest


def _joined(messages: Sequence[Message]) -> str:
    texts = [text for message in messages if (text := text_of(message))]
    return concat([piece for text in texts for piece in (_BETWEEN, text)][1:])


def text_of(message: Mapping[str, Any]) -> str:
    """Returns: a message's content as one text."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return concat([part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)])


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    return message | {"content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def without_trace(messages: Sequence[Mapping[str, Any]], prompt: str) -> list[int]:
    """Returns: numbers of messages that say something, none of which is known to be in the prompt."""
    shown = authors_in(prompt)
    return [
        number
        for number, message in enumerate(messages)
        if author_of_message(number) not in shown and (text_of(message).strip() or message.get("tool_calls"))
    ]
