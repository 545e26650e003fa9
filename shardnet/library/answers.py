"""What may be asked of a model and what comes of it, the same words for `ShardRunner` and `SwarmClient`. Plain data."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypedDict

from shardnet.errors import UsageError

Prompt = str | Sequence[int]
"""A text, or token ids: the only way to spell control tokens."""
Messages = Sequence[Mapping[str, Any]]
"""A conversation: `{"role": "user", "content": "..."}`, and what else the model's chat template takes."""

OnText = Callable[[str], object]
"""Called with each part of an answer's text as it comes."""


class Options(TypedDict, total=False):
    """How to answer, all of it optional, as the HTTP API calls it (docs/http-api.md)."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    logit_bias: Mapping[str, float] | None
    grammar: str | None
    response_format: Mapping[str, Any] | None
    json_schema: Mapping[str, Any] | None
    regex: str | None
    ignore_eos: bool | None
    documents: Sequence[Mapping[str, Any]] | None
    reasoning_effort: str | None
    continue_final_message: bool | None
    add_generation_prompt: bool | None
    chat_template_kwargs: Mapping[str, Any] | None
    speculation: bool | None
    suffix: str | None


@dataclass(frozen=True, slots=True)
class Piece:
    """What came of an answer since the last piece. Printed, it is its text, which may be empty: a character can be spread over several tokens.

    Attributes:
        finish_reason: "stop" or "length" in the last piece, else None.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(slots=True)
class Answer:
    """One finished request, with its clock readings. Printed, it is its text."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    """"stop": the text ended by itself or at a stop string; "length": `max_tokens`, or the context is full."""
    model: str = ""
    first_token_s: float = 0.0
    """From asking to the first token, seconds."""
    decode_s: float = 0.0
    """From the first token to the last, seconds."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Over a swarm, per stage: node, layers, median microseconds of queue, compute and engine hand-over, bytes sent on per decode step."""
    began_s: float = field(default_factory=time.perf_counter, repr=False)

    def __str__(self) -> str:
        return self.text

    @property
    def tokens_per_s(self) -> float:
        """Returns: speed from the first token to the last; 0 for a single one."""
        return (len(self.token_ids) - 1) / self.decode_s if self.decode_s else 0.0

    def add(self, piece: Piece) -> Piece:
        """Take in what came. Returns: it."""
        if piece.token_ids:
            elapsed_s = time.perf_counter() - self.began_s
            self.first_token_s = self.first_token_s or elapsed_s
            self.decode_s = elapsed_s - self.first_token_s
        self.text += piece.text
        self.token_ids += piece.token_ids
        self.finish_reason = piece.finish_reason or self.finish_reason
        return piece


def tell_all(pieces: Generator[Piece, None, None], on_text: OnText | None) -> None:
    """Take every piece of an answer, and tell of its text. Ends the answer if `on_text` raises."""
    with closing(pieces):
        for piece in pieces:
            if on_text is not None and piece.text:
                on_text(piece.text)


def body_of(options: Options) -> dict[str, Any]:
    """Returns: the options that were given, as fields of a request. Raises: UsageError for one that there is not."""
    unknown = sorted(options.keys() - Options.__annotations__.keys())
    if unknown:
        raise UsageError(f"there is no option {unknown[0]!r}: there are {', '.join(sorted(Options.__annotations__))}")
    return {name: value for name, value in options.items() if value is not None}


def is_prompt(asked: Prompt | Messages) -> bool:
    """Returns: True for a text or token ids, which the model continues; False for a conversation, which it answers."""
    return isinstance(asked, str) or all(isinstance(one, int) for one in asked)
