"""What was said: messages in the shape of the chat API, and an answer while it comes. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from shardnet.errors import UsageError
from shardnet.faults import no_json

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")


@dataclass(slots=True)
class Reply:
    """An answer as it comes, out of the events of a streamed chat.

    Attributes:
        calls: tool calls, whole once the answer is over.
        stages: which nodes answer, with the layers of each.
        broken_off: by whoever reads it.
    """

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    n_tokens: int = 0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    stages: list[dict[str, Any]] = field(default_factory=list)
    broken_off: bool = False

    def take(self, event: dict[str, Any], elapsed_s: float) -> None:
        """Take in one event, so many seconds after the question."""
        self.stages = (event.get("shardnet") or {}).get("stages") or self.stages
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            self.content += delta.get("content") or ""
            self.reasoning += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or ():
                self._take_call(call)
            if n := len(choice.get("token_ids") or ()):
                self.n_tokens += n
                self.first_token_s = self.first_token_s or elapsed_s
                self.last_token_s = elapsed_s
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _take_call(self, delta: dict[str, Any]) -> None:
        while len(self.calls) <= delta["index"]:
            self.calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call, said = self.calls[delta["index"]], delta.get("function") or {}
        call["id"] = delta.get("id") or call["id"]
        call["function"]["name"] += said.get("name") or ""
        call["function"]["arguments"] += said.get("arguments") or ""

    @property
    def tokens_per_s(self) -> float | None:
        """Returns: from the first token to the last; None for fewer than two."""
        seconds = self.last_token_s - self.first_token_s
        return (self.n_tokens - 1) / seconds if self.n_tokens > 1 and seconds > 0 else None

    def message(self) -> Message:
        """Returns: the answer as the next request repeats it. A call that broke off is left out: nobody can answer it."""
        said: Message = {"role": "assistant", "content": self.content}
        if self.reasoning:
            said["reasoning_content"] = self.reasoning
        if self.calls and not self.broken_off:
            said["tool_calls"] = self.calls
        return said

    def facts(self) -> str:
        """Returns: length, speed, and which nodes answered, in a line."""
        told = [f"{self.n_tokens} token{'s' * (self.n_tokens != 1)}"]
        if self.tokens_per_s is not None:
            told.append(f"{self.tokens_per_s:.1f} tokens/s")
        if self.n_tokens:
            told.append(f"first after {self.first_token_s:.2f} s")
        if self.broken_off:
            told.append("broken off")
        elif self.finish_reason == "length":
            told.append("cut off: the length allowed or the context is full")
        line = ", ".join(told)
        if self.stages:
            line += " · " + " → ".join(f"{stage['node']} {stage['layers']}" for stage in self.stages)
        return line


@dataclass(slots=True)
class Conversation:
    """Everything said so far, and how answers are asked for.

    Attributes:
        options: fields of the request: temperature, max_tokens, ...
        tools: as the chat API takes them.
    """

    model: str | None = None
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.7})

    def body(self) -> dict[str, Any]:
        """Returns: the request for the next answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {"messages": system + self.messages, "return_token_ids": True} | self.options
        if self.model is not None:
            body["model"] = self.model
        if self.tools:
            body["tools"] = self.tools
        return body

    def say(self, text: str) -> None:
        """Add what the user says."""
        self.messages.append({"role": "user", "content": text})

    def give_result(self, call: dict[str, Any], result: str) -> None:
        """Add what came of a tool call."""
        self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})

    def take_back(self) -> str | None:
        """Take back the last thing that the user said, and all after it. Returns: it; None where nothing was said."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index]["role"] == "user":
                said: str = self.messages[index]["content"]
                del self.messages[index:]
                return said
        return None

    def as_json(self) -> str:
        """Returns: what `from_json` reads."""
        kept = {"model": self.model, "system": self.system, "options": self.options, "tools": self.tools}
        return json.dumps(kept | {"messages": self.messages}, ensure_ascii=False, indent=2) + "\n"

    def as_markdown(self) -> str:
        """Returns: the conversation for people to read."""
        parts = [f"**system**\n\n{self.system}"] if self.system else []
        for message in self.messages:
            text = message.get("content") or ""
            for call in message.get("tool_calls") or ():
                text += f"\n\n`{call['function']['name']}({call['function']['arguments']})`"
            parts.append(f"**{message['role']}**\n\n{text.strip()}")
        return "\n\n".join(parts) + "\n"


def from_json(text: str, source: str) -> Conversation:
    """Returns: a conversation that was saved, or a plain list of messages. Raises: UsageError with what is wrong."""
    read = _json(text, source)
    kept = {"messages": read} if isinstance(read, list) else read
    messages = kept.get("messages") if isinstance(kept, dict) else None
    if not isinstance(messages, list):
        raise UsageError(f"{source} is no conversation: it has no list of messages")
    for number, one in enumerate(messages):
        if not isinstance(one, dict) or one.get("role") not in ROLES:
            raise UsageError(f"{source}: message {number} has no role of {', '.join(ROLES)}")
    system = kept.get("system")
    if messages and messages[0]["role"] == "system" and isinstance(messages[0].get("content"), str):
        system, messages = messages[0]["content"], messages[1:]
    options, tools = kept.get("options") or {}, kept.get("tools") or []
    if not isinstance(options, dict) or not (system is None or isinstance(system, str)):
        raise UsageError(f"{source} is no conversation: its options or its system message are of the wrong kind")
    return Conversation(None, system, messages, check_tools(tools, source), options)


def tools_from_json(text: str, source: str) -> list[dict[str, Any]]:
    """Returns: as `check_tools`. Raises: UsageError with what is wrong."""
    return check_tools(_json(text, source), source)


def _json(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{source} is not JSON: {no_json(str(error))}") from None
    except RecursionError:
        raise UsageError(f"{source} is nested too deeply") from None


def check_tools(read: Any, source: str) -> list[dict[str, Any]]:
    """Returns: tools as the chat API takes them, out of a list or of a single one. Raises: UsageError with what is wrong."""
    tools = [read] if isinstance(read, dict) else read
    if not isinstance(tools, list):
        raise UsageError(f"{source} holds no list of tools")
    found = []
    for number, one in enumerate(tools):
        if isinstance(one, dict) and "name" in one and "function" not in one:
            one = {"type": "function", "function": one}
        function = one.get("function") if isinstance(one, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UsageError(
                f'{source}: tool {number} is no function: write {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}'
            )
        found.append(one)
    return found
