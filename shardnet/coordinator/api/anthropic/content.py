"""Messages made of content blocks as the messages of a chat. Pure.

What tools gave back stands within a user's message there and is a message of its own here. Messages of one role that follow each other are one turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from shardnet.coordinator.api.schemas import Lenient
from shardnet.coordinator.api.translation import Place, read
from shardnet.errors import UsageError

BETWEEN = "\n\n"
"""Between two messages that are one turn."""
FAILED = "Error: "
NO_TEXTS = ("image", "document", "container_upload")
ALLOWED = {"user": ("text", "tool_result"), "system": ("text",)}
ALLOWED["assistant"] = ("text", "thinking", "redacted_thinking", "tool_use")
JOINED = {"content": "", "reasoning_content": "\n"}
"""Keys of a message whose texts are one text at the end -> what stands between them."""
MAX_ID = 512


class Message(Lenient):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Any]


class TextBlock(Lenient):
    """Words."""

    text: str


class ThinkingBlock(Lenient):
    """What the model wrote to itself. Its signature is not looked at: nothing is signed here."""

    thinking: str


class CallBlock(Lenient):
    """A call that the model made."""

    id: str = Field(min_length=1, max_length=MAX_ID)
    name: str = Field(min_length=1, max_length=256)
    input: dict[str, Any]


class ResultBlock(Lenient):
    """What a tool gave back."""

    tool_use_id: str = Field(min_length=1, max_length=MAX_ID)
    content: str | list[Any] | None = None
    is_error: bool | None = None


class Conversation:
    """Messages in the making.

    Attributes:
        messages: of the chat.
        places: where the client wrote each.
    """

    def __init__(self, system: Any) -> None:
        self.messages: list[dict[str, Any]] = []
        self.places: list[Place] = []
        self._calls: set[str] = set()
        content = texts_of(system, "system")
        if content:
            self._add("system", "system", content)

    def take(self, given: Any, where: str) -> None:
        """Take in one message. Raises: UsageError for what is not known, or not usable, naming the place."""
        message = read(Message, given, where)
        blocks = message.content if isinstance(message.content, list) else [{"type": "text", "text": message.content}]
        for at, block in enumerate(blocks or [{"type": "text", "text": ""}]):
            self._block(message.role, block, f"{where}.content.{at}", where, begins=at == 0)

    def _block(self, role: str, block: Any, place: str, where: str, *, begins: bool) -> None:
        _check_kind(block, ALLOWED[role], place, f"in a message of role {role!r} ")
        match block.get("type"):
            case "text":
                turn = self._turn(role, where)
                content = turn.setdefault("content", [])
                if begins and content:
                    content.append(BETWEEN)
                content.append(read(TextBlock, block, place).text)
            case "thinking":
                thought = read(ThinkingBlock, block, place).thinking
                self._turn(role, where).setdefault("reasoning_content", []).append(thought)
            case "tool_use":
                self._call(self._turn(role, where), read(CallBlock, block, place))
            case "tool_result":
                self._give_back(read(ResultBlock, block, place), place)
            case _:  # what was thought and is sealed
                self._turn(role, where)

    def _turn(self, role: str, where: str) -> dict[str, Any]:
        """Returns: the message that is being made, or a new one."""
        if not self.messages or self.messages[-1]["role"] != role:
            self._add(where, role)
        return self.messages[-1]

    def _call(self, turn: dict[str, Any], block: CallBlock) -> None:
        self._calls.add(block.id)
        function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
        turn.setdefault("tool_calls", []).append({"id": block.id, "type": "function", "function": function})

    def _give_back(self, block: ResultBlock, place: str) -> None:
        if block.tool_use_id not in self._calls:
            raise UsageError(
                f"{place}.tool_use_id: no tool_use before it has the id {block.tool_use_id[:64]!r}: send the call too",
                param=place,
            )
        content = texts_of(block.content, f"{place}.content")
        content = [FAILED, *content] if block.is_error else content
        self._add(place, "tool", content, tool_call_id=block.tool_use_id)

    def _add(self, place: str, role: str, content: list[str] | None = None, **more: Any) -> None:
        said = {} if content is None else {"content": content}
        self.messages.append({"role": role, **said, **more})
        self.places.append(Place(place, place))


def conversation_of(messages: Sequence[Any], system: Any) -> Conversation:
    """Returns: the chat that messages are. Raises: UsageError naming what is wrong, and where."""
    made = Conversation(system)
    for at, message in enumerate(messages):
        made.take(message, f"messages.{at}")
    for message in made.messages:
        for key, between in JOINED.items():
            if key in message:
                message[key] = between.join(message[key])
    last, place = made.messages[-1], made.places[-1].of_message
    if last["role"] == "assistant" and "tool_calls" in last:
        raise UsageError(f"{place}: the conversation ends with calls: send what they gave back", param=place)
    return made


def texts_of(content: Any, where: str) -> list[str]:
    """Returns: a text, or blocks of text, as texts. Raises: UsageError for anything else."""
    if content is None or isinstance(content, str):
        return [content] if content else []
    if not isinstance(content, list):
        raise UsageError(f"{where}: must be a text or a list", param=where)
    made = []
    for at, block in enumerate(content):
        place = f"{where}.{at}"
        _check_kind(block, ("text",), place)
        made.append(read(TextBlock, block, place).text)
    return made


def _check_kind(block: Any, allowed: Sequence[str], place: str, where: str = "") -> None:
    if not isinstance(block, dict):
        raise UsageError(f"{place}: a block is an object with a type", param=place)
    kind = block.get("type")
    if kind is None:
        raise UsageError(f"{place}.type: is missing", param=place)
    if kind in NO_TEXTS:
        raise UsageError(f"{place}: a block of type {kind!r} cannot be taken: models here read texts only", param=place)
    if kind not in allowed:
        raise UsageError(
            f"{place}: a block of type {str(kind)[:64]!r} {where}cannot be taken: {', '.join(allowed)} can", param=place
        )
