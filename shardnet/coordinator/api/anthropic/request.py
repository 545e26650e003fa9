"""`POST /v1/messages`: what may be asked, and the chat that is meant by it. Pure."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from shardnet.coordinator.api.anthropic.content import conversation_of
from shardnet.coordinator.api.anthropic.wording import MessageTurn
from shardnet.coordinator.api.schemas import AnswerTokens, Lenient, StopText
from shardnet.coordinator.api.service import Answering
from shardnet.coordinator.api.structure_fields import ResponseFormat
from shardnet.coordinator.api.translation import Places, Translated, as_chat, passed
from shardnet.errors import UsageError

REFUSED: dict[str, str] = {
    "container": "nothing is run here",
    "mcp_servers": "servers are not asked here: give their tools in the field 'tools'",
    "compaction": "a conversation is not made shorter here: send a shorter one",
}
IGNORED = ("max_tokens",)
"""Where tokens are counted."""
NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
}
PARTS = {".function.parameters": ".input_schema", ".function.": "."}
CHOICES = '{"type": "auto"}, {"type": "any"}, {"type": "none"} or {"type": "tool", "name": ...}'


class Thinking(Lenient):
    """Whether the model is to reason. How long is up to it."""

    type: str = Field(max_length=64)


class OutputConfig(Lenient):
    """The answer's form, and how much the model is to reason."""

    effort: str | None = Field(default=None, max_length=64)
    format: ResponseFormat | None = None


class ToolChoice(Lenient):
    """Whether tools are to be called."""

    type: str | None = Field(default=None, max_length=64)
    name: str | None = Field(default=None, max_length=256)
    disable_parallel_tool_use: bool | None = None


class CountRequest(Lenient):
    """`POST /v1/messages/count_tokens`. What means the same in chats is read by them."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(default=None, max_length=256)
    messages: list[Any] = Field(min_length=1, max_length=10_000)
    system: Any = None
    stream: bool | None = None
    stop_sequences: list[StopText] | None = Field(default=None, fail_fast=True)
    tools: list[Any] | None = Field(default=None, max_length=1024)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: ResponseFormat | None = None

    @property
    def is_streamed(self) -> bool:
        """True if it is to come as events."""
        return bool(self.stream)

    def translated(self) -> Translated:
        """See `TurnRequest`."""
        given = self.model_extra or {}
        further = passed(given, REFUSED, IGNORED)
        if given.get("thread"):  # the anthropic package acts upon the code: it goes on without a thread
            raise UsageError(
                "thread: nothing is kept here: send the whole conversation, and no thread",
                param="thread",
                error_code="thread_unsupported_request",
            )
        conversation = conversation_of(self.messages, self.system)
        output = self.output_config or OutputConfig()
        choice, parallel = _choice(self.tool_choice)
        continues = conversation.messages[-1]["role"] == "assistant"
        asked = {
            "model": self.model,
            "messages": conversation.messages,
            "stream": self.stream,
            "max_tokens": self.most_tokens(),
            "stop": self.stop_sequences,
            "response_format": output.format or self.output_format,
            "reasoning_effort": output.effort,
            "tools": None if self.tools is None else [_tool(at, one) for at, one in enumerate(self.tools)],
            "tool_choice": choice,
            "parallel_tool_calls": parallel,
            "chat_template_kwargs": self._variables(further.get("chat_template_kwargs")),
            "continue_final_message": True if continues else None,
        }
        last = conversation.places[-1].of_message
        names = NAMES | {"continue_final_message": last}
        return as_chat(further | asked, Places(conversation.places, names, PARTS))

    def most_tokens(self) -> int | None:
        """Returns: how long the answer may be, as it was written."""
        return None

    def _variables(self, given: Any) -> Any:
        """Returns: names for the chat template; whether to think under the name that most templates know."""
        if self.thinking is None or not isinstance(given, dict | None):
            return given
        return {"enable_thinking": self.thinking.type != "disabled"} | (given or {})

    def turn(self, answering: Answering, chat: Translated) -> MessageTurn:
        """See `TurnRequest`."""
        return MessageTurn(answering, most=chat.chat.most_tokens())


class MessagesRequest(CountRequest):
    """`POST /v1/messages`."""

    max_tokens: AnswerTokens

    def most_tokens(self) -> int | None:
        """See `CountRequest`."""
        return self.max_tokens


def _tool(at: int, tool: Any) -> dict[str, Any]:
    """Returns: a tool as chats have it. Raises: UsageError for one of Anthropic's own."""
    if not isinstance(tool, dict):
        raise UsageError(f"tools.{at}: a tool is an object with a name and an input_schema", param="tools")
    if tool.get("type") not in (None, "custom"):
        raise UsageError(
            f"tools.{at}: a tool of type {str(tool['type'])[:64]!r} is not known here: give its name, description and input_schema",
            param="tools",
        )
    known = {"name": "name", "description": "description", "input_schema": "parameters", "strict": "strict"}
    function = {ours: tool[theirs] for theirs, ours in known.items() if tool.get(theirs) is not None}
    return {"type": "function", "function": function}


def _choice(given: ToolChoice | None) -> tuple[Any, bool | None]:
    """Returns: the fields `tool_choice` and `parallel_tool_calls` of a chat."""
    if given is None or given.type is None:
        return None, None
    parallel = False if given.disable_parallel_tool_use else None
    match given.type:
        case "auto" | "none":
            return given.type, parallel
        case "any":
            return "required", parallel
        case "tool" if given.name:
            return {"type": "function", "function": {"name": given.name}}, parallel
        case _:
            raise UsageError(f"tool_choice: give {CHOICES}; nothing else is supported", param="tool_choice")
