"""A response's input as the messages of a chat. Pure.

Reasoning, text and calls of one answer are items of their own here and one message there: items of the assistant that follow each other
are put together.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from shardnet.coordinator.api.schemas import Lenient
from shardnet.coordinator.api.translation import Place, read
from shardnet.errors import UsageError

Parts = str | list[Any] | None
"""Parts are looked over as those of chats."""
MAX_ID = 512


class MessageItem(Lenient):
    """What somebody said."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Parts = None


class CallItem(Lenient):
    """A call that the model made."""

    call_id: str = Field(min_length=1, max_length=MAX_ID)
    name: str = Field(min_length=1, max_length=256)
    arguments: str
    status: str | None = None

    @property
    def broke_off(self) -> bool:
        """True if it was never whole: its text is a message of its own then."""
        if self.status != "incomplete":
            return False
        try:
            return not isinstance(json.loads(self.arguments), dict)
        except (ValueError, RecursionError):
            return True


class OutputItem(Lenient):
    """What a function gave back."""

    call_id: str = Field(min_length=1, max_length=MAX_ID)
    output: str | list[Any]


class ReasoningText(Lenient):
    """A piece of reasoning, or of its summary."""

    text: str


class ReasoningItem(Lenient):
    """What the model wrote to itself."""

    content: list[ReasoningText] | None = Field(default=None, fail_fast=True)
    summary: list[ReasoningText] | None = Field(default=None, fail_fast=True)

    @property
    def text(self) -> str:
        """All of it; its summary where nothing else came along."""
        return "\n".join(one.text for one in self.content or self.summary or ())


class Conversation:
    """Messages in the making.

    Attributes:
        messages: of the chat.
        places: where the client wrote each.
    """

    def __init__(self, instructions: str | None) -> None:
        self.messages: list[dict[str, Any]] = []
        self.places: list[Place] = []
        self._calls: set[str] = set()
        self._thoughts: list[str] = []
        self._answer: dict[str, Any] | None = None
        if instructions:
            self._add(Place("instructions", "instructions"), {"role": "system", "content": instructions})

    def take(self, item: Any, where: str) -> None:
        """Take in one item. Raises: UsageError for one that is not known, or not usable, naming the place."""
        if not isinstance(item, dict):
            raise UsageError(f"{where}: an item is an object with keys", param=where)
        match item.get("type"):
            case "message" | None if item.get("type") or "role" in item:
                self._say(read(MessageItem, item, where), where)
            case "function_call":
                self._call(read(CallItem, item, where), where)
            case "function_call_output":
                self._give_back(read(OutputItem, item, where), where)
            case "reasoning":
                self._answer = None
                self._thoughts.append(read(ReasoningItem, item, where).text)
            case None:
                raise UsageError(f"{where}.type: is missing, and so is a role", param=where)
            case "item_reference":
                raise UsageError(
                    f"{where}: nothing is kept here that an item_reference could mean: send the item itself (with `store: false` clients do)",
                    param=where,
                )
            case other:
                raise UsageError(
                    f"{where}: an item of type {str(other)[:64]!r} cannot be taken: message, function_call, function_call_output and reasoning can",
                    param=where,
                )

    def _say(self, item: MessageItem, where: str) -> None:
        content = _readable(item.content)
        if item.role != "assistant":
            self._answer, self._thoughts = None, []
            self._add(Place(where, f"{where}.content"), {"role": item.role, "content": content})
        elif self._answer is not None and "content" not in self._answer:
            self._answer["content"] = content
        elif self._answer is not None and "tool_calls" in self._answer:  # text, a call, text: one answer
            joined = self._answer["content"] = _as_parts(self._answer["content"])
            joined += [*_as_parts("\n"), *_as_parts(content)]
        else:
            self._begin_answer(where)["content"] = content

    def _call(self, item: CallItem, where: str) -> None:
        if item.broke_off:
            return
        self._calls.add(item.call_id)
        answer = self._answer if self._answer is not None else self._begin_answer(where)
        function = {"name": item.name, "arguments": item.arguments}
        answer.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})

    def _give_back(self, item: OutputItem, where: str) -> None:
        if item.call_id not in self._calls:
            raise UsageError(
                f"{where}.call_id: no function_call before it has the call_id {item.call_id[:64]!r}: send the call too",
                param=where,
            )
        self._answer, self._thoughts = None, []
        message = {"role": "tool", "tool_call_id": item.call_id, "content": item.output}
        self._add(Place(where, f"{where}.output"), message)

    def _begin_answer(self, where: str) -> dict[str, Any]:
        answer: dict[str, Any] = {"role": "assistant"}
        if thoughts := "\n".join(one for one in self._thoughts if one):
            answer["reasoning_content"] = thoughts
        self._answer, self._thoughts = answer, []
        self._add(Place(where, f"{where}.content"), answer)
        return answer

    def _add(self, place: Place, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self.places.append(place)


def conversation_of(given: Any, instructions: str | None) -> Conversation:
    """Returns: the chat that a response's input is. Raises: UsageError naming the item that is wrong."""
    made = Conversation(instructions)
    if isinstance(given, str):
        made.take({"role": "user", "content": given}, "input")
        made.places[-1] = Place("input", "input")
        return made
    if not isinstance(given, list):
        raise UsageError("input: is missing" if given is None else "input: must be a text or a list", param="input")
    if not given:
        raise UsageError("input: must not be empty", param="input")
    for at, item in enumerate(given):
        made.take(item, f"input.{at}")
    return made


def _readable(content: Parts) -> Parts:
    """Returns: the content, refusals as the texts that they are."""
    if not isinstance(content, list):
        return content
    return [
        {"type": "output_text", "text": part.get("refusal")}
        if isinstance(part, dict) and part.get("type") == "refusal"
        else part
        for part in content
    ]


def _as_parts(content: Parts) -> list[Any]:
    if content is None:
        return []
    return [{"type": "output_text", "text": content}] if isinstance(content, str) else content
