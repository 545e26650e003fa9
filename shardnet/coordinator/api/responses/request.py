"""`POST /v1/responses`: what may be asked, and the chat that is meant by it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from shardnet.coordinator.api.responses.items import conversation_of
from shardnet.coordinator.api.responses.wording import ResponseTurn
from shardnet.coordinator.api.schemas import AnswerTokens, Lenient
from shardnet.coordinator.api.service import Answering
from shardnet.coordinator.api.structure_fields import ResponseFormat
from shardnet.coordinator.api.translation import Places, Translated, as_chat, passed
from shardnet.errors import UsageError

KEPT = "nothing is kept here"
REFUSED: dict[str, str] = {
    "store": f"{KEPT}: leave it out, or say false",
    "previous_response_id": f"{KEPT}: send the whole conversation as input",
    "conversation": f"{KEPT}: send the whole conversation as input",
    "background": "answers are not made in the background: stream them",
    "prompt": f"{KEPT}, no prompts either: use instructions and input",
    "context_management": "a conversation is not made shorter here: send a shorter one",
    "moderation": "nothing is moderated here",
}
IGNORED = ("stream_options",)
NAMES = {
    "messages": "input",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
}
PARTS = {".function.": "."}
LOGPROBS = "message.output_text.logprobs"
MAX_METADATA = 16


def _few(given: Any) -> Any:
    if isinstance(given, dict) and len(given) > MAX_METADATA:
        raise ValueError(f"must have at most {MAX_METADATA} entries")
    return given


class Reasoning(Lenient):
    """How much the model is to reason. A summary is not made: reasoning comes as it is."""

    effort: str | None = Field(default=None, max_length=64)


class TextForm(Lenient):
    """The answer's form."""

    format: ResponseFormat | None = None


class ResponsesRequest(Lenient):
    """`POST /v1/responses`. What means the same in chats is read by them."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(default=None, max_length=256)
    input: Any = None
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: AnswerTokens | None = None
    text: TextForm | None = None
    reasoning: Reasoning | None = None
    stop: Any = None
    tools: list[Any] | None = Field(default=None, max_length=1024)
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = Field(default=None, max_length=64, fail_fast=True)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    truncation: str | None = Field(default=None, max_length=64)
    metadata: Annotated[dict[str, str], BeforeValidator(_few)] | None = None

    @property
    def is_streamed(self) -> bool:
        """True if it is to come as events."""
        return bool(self.stream)

    @property
    def wants_logprobs(self) -> bool:
        """True if tokens' probabilities are asked for."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    def translated(self) -> Translated:
        """See `TurnRequest`."""
        further = passed(self.model_extra or {}, REFUSED, IGNORED)
        if self.truncation not in (None, "disabled"):
            raise UsageError(f"truncation: {REFUSED['context_management']}", param="truncation")
        conversation = conversation_of(self.input, self.instructions)
        body = further | {
            "model": self.model,
            "messages": conversation.messages,
            "stream": self.stream,
            "stop": self.stop,
            "max_completion_tokens": self.max_output_tokens,
            "response_format": self.text.format if self.text is not None else None,
            "reasoning_effort": self.reasoning.effort if self.reasoning is not None else None,
            "tools": None if self.tools is None else [_tool(one) for one in self.tools],
            "tool_choice": _choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "logprobs": True if self.wants_logprobs else None,
            "top_logprobs": self.top_logprobs if self.wants_logprobs else None,
        }
        return as_chat(body, Places(conversation.places, NAMES, PARTS))

    def turn(self, answering: Answering, chat: Translated) -> ResponseTurn:
        """See `TurnRequest`."""
        return ResponseTurn(answering, self._echoed(chat), streamed=self.is_streamed, logprobs=self.wants_logprobs)

    def _echoed(self, chat: Translated) -> Mapping[str, Any]:
        """Returns: what a response says again of what was asked."""
        sampling = chat.chat
        format = self.text.format if self.text is not None else None
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": self.reasoning.effort if self.reasoning is not None else None, "summary": None},
            "store": False,
            "temperature": 1.0 if sampling.temperature is None else sampling.temperature,
            "text": {"format": _format_told(format)},
            "tool_choice": "auto" if self.tool_choice is None else self.tool_choice,
            "tools": self.tools or [],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
            "truncation": "disabled",
        }


def _format_told(format: ResponseFormat | None) -> dict[str, Any]:
    given = {} if format is None else format.model_dump(by_alias=True, exclude_none=True)
    return {"type": "text"} | given


def _tool(tool: Any) -> Any:
    """Returns: a function as chats have it, its keys within `function`; what else it is as it is, for them to refuse."""
    if not isinstance(tool, dict):
        raise UsageError("tools: a tool is an object with a type and a name", param="tools")
    if tool.get("type", "function") != "function":
        return tool
    known = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {key: tool[key] for key in known if tool.get(key) is not None}}


def _choice(choice: Any) -> Any:
    if choice is None or choice in ("none", "auto", "required"):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}
    raise UsageError(
        "tool_choice: give 'none', 'auto', 'required', or {\"type\": \"function\", \"name\": ...}; nothing else is supported",
        param="tool_choice",
    )
