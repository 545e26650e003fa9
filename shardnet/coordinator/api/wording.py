"""How answers are worded: OpenAI's objects for completions and chats, whole and in parts. Pure."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Any, Literal

from shardnet.coordinator.api.completion_logprobs import TextOffsets, joined_lists, logprob_lists, prompt_offsets
from shardnet.coordinator.api.messages import delta_of, message_of, text_of
from shardnet.coordinator.api.schemas import ChatRequest, CompletionRequest
from shardnet.coordinator.api.service import Answering
from shardnet.coordinator.requests.generation_spec import Emitted
from shardnet.coordinator.requests.running import Piece
from shardnet.coordinator.text.calls.events import Content, Event
from shardnet.ids import new_id

What = Literal["whole", "first", "part", "last"]
"""The whole answer, or which event of a stream."""


_written = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def to_event(data: dict[str, Any]) -> bytes:
    """Returns: one server-sent event."""
    return b"data: " + _written(data).encode() + b"\n\n"


class Wording:
    """One answer in the making. Subclasses know their endpoint's shape."""

    object_whole = ""
    object_part = ""
    id_prefix = ""

    def __init__(
        self, answering: Answering, index: int, base: dict[str, Any], *, logprobs: bool, token_ids: bool, echo: str = ""
    ) -> None:
        self.answering = answering
        self.index = index
        self._echo = echo
        self._logprobs = logprobs
        self._token_ids = token_ids
        self._events: list[Event] = []
        self._tokens: list[Emitted] = []
        self._unsent: list[Emitted] = []
        self._base = base | {"object": self.object_part}

    @property
    def wants_every_token(self) -> bool:
        """True if a part is worth sending although its text is held back."""
        return self._logprobs or self._token_ids

    # -- whole -----------------------------------------------------------------------------------------------------------------

    def add(self, piece: Piece) -> None:
        """Take in what came."""
        self._events += piece.events
        self._tokens += piece.tokens
        self._unsent += piece.tokens

    def whole(self, finish_reason: str) -> dict[str, Any]:
        """Returns: the whole choice."""
        return self._choice("whole", [*_content(self._echo), *self._events]) | self._extras(self._tokens, finish_reason)

    # -- in parts --------------------------------------------------------------------------------------------------------------

    def first(self) -> dict[str, Any]:
        """Returns: the event that opens the stream."""
        return self._event(self._choice("first", _content(self._echo)) | self._no_extras()) | self.prompt_ids()

    def part(self, piece: Piece) -> dict[str, Any]:
        """Returns: the event of one piece."""
        self.add(piece)
        tokens, self._unsent = self._unsent, []
        return self._event(self._choice("part", piece.events) | self._extras(tokens, None))

    def part_event(self, piece: Piece) -> bytes:
        """Returns: the event of one piece, as it is sent. Nearly all say a text and nothing else: all of them but the text is written once."""
        text = "".join([event.text for event in piece.events if type(event) is Content])
        if self.wants_every_token or not all(type(event) is Content for event in piece.events):
            return to_event(self.part(piece))
        before, behind = self._around_text
        return before + _written(text).encode() + behind

    @cached_property
    def _around_text(self) -> tuple[bytes, bytes]:
        """What stands before and behind the JSON of a text."""
        mark = new_id()
        whole = to_event(self._event(self._choice("part", [Content(mark)]) | self._no_extras()))
        before, _, behind = whole.partition(f'"{mark}"'.encode())
        return before, behind

    def last(self, finish_reason: str, stages: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns: the event that says why the answer ended."""
        tokens, self._unsent = self._unsent, []
        return self._event(self._choice("last") | self._extras(tokens, finish_reason)) | self.statistics(stages)

    # -- shapes ----------------------------------------------------------------------------------------------------------------

    def _choice(self, what: What, events: Sequence[Event] = ()) -> dict[str, Any]:
        raise NotImplementedError

    def _logprob_object(self, tokens: list[Emitted]) -> dict[str, Any]:
        raise NotImplementedError

    def _event(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._base | {"choices": [choice]}

    def _no_extras(self) -> dict[str, Any]:
        return {"index": self.index, "logprobs": None, "finish_reason": None}

    def _extras(self, tokens: list[Emitted], finish_reason: str | None) -> dict[str, Any]:
        extras = self._no_extras() | {"finish_reason": finish_reason}
        if self._logprobs and (tokens or self._has_prompt_logprobs):
            extras["logprobs"] = self._logprob_object(tokens)
        if self._token_ids:
            extras["token_ids"] = [one.token for one in tokens]
        return extras

    @property
    def _has_prompt_logprobs(self) -> bool:
        """True if those of the prompt's own tokens are known, and were not told yet."""
        return False

    def prompt_ids(self) -> dict[str, Any]:
        """Returns: the prompt's tokens, if tokens were asked for."""
        return {"prompt_token_ids": self.answering.prompt} if self._token_ids else {}

    def statistics(self, stages: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns: what each stage did, if tokens were asked for."""
        if not self._token_ids:
            return {}
        generation = self.answering.running.generation
        found: dict[str, Any] = {"stages": stages, "attempts": generation.attempts}
        speculator = generation.speculator
        if speculator is not None:
            found["speculation"] = {"proposed": speculator.proposed, "accepted": speculator.accepted}
        return {"shardnet": found}

    def _piece(self, token: int) -> bytes:
        return token_bytes(self.answering, token)


def token_bytes(answering: Answering, token: int) -> bytes:
    """Returns: what a token says; control tokens are spelled."""
    vocabulary = answering.words.vocabulary
    return vocabulary.piece(token) or vocabulary.text_of(token).encode()


def token_logprobs(answering: Answering, one: Emitted) -> dict[str, Any]:
    """Returns: a token with its log-probability, and the most likely ones in its place."""

    def worded(token: int, logprob: float | None) -> dict[str, Any]:
        said = token_bytes(answering, token)
        return {"token": said.decode(errors="replace"), "logprob": logprob, "bytes": list(said)}

    own = one.logprobs[0].logprob if one.logprobs else None
    return worded(one.token, own) | {"top_logprobs": [worded(top.token, top.logprob) for top in one.logprobs[1:]]}


class CompletionWording(Wording):
    """`/v1/completions`."""

    object_whole = object_part = "text_completion"
    id_prefix = "cmpl-"

    def __init__(
        self,
        answering: Answering,
        index: int,
        base: dict[str, Any],
        *,
        logprobs: bool,
        token_ids: bool,
        echo: str = "",
        plain: bool = True,
    ) -> None:
        """Args: plain: the prompt came as a text, which shows no control tokens."""
        super().__init__(answering, index, base, logprobs=logprobs, token_ids=token_ids, echo=echo)
        self._is_plain = plain
        self._offsets = TextOffsets(len(echo))
        self._awaits_prompt = logprobs and answering.running.generation.read is not None

    def _choice(self, what: What, events: Sequence[Event] = ()) -> dict[str, Any]:
        return {"text": text_of(events)}

    @property
    def _has_prompt_logprobs(self) -> bool:
        read = self.answering.running.generation.read
        return self._awaits_prompt and read is not None and read.is_complete

    def _logprob_object(self, tokens: list[Emitted]) -> dict[str, Any]:
        shown = self.answering.words.vocabulary.piece
        offsets = [self._offsets.of(shown(one.token)) for one in tokens]
        lists = logprob_lists(tokens, offsets, self._piece)
        if self._has_prompt_logprobs:
            self._awaits_prompt = False
            lists = joined_lists(self._prompt_lists(), lists)
        return lists

    def _prompt_lists(self) -> dict[str, Any]:
        """Returns: the entries of the prompt's tokens; of the first one nothing is known, since nothing stands before it."""
        prompt, read = self.answering.prompt, self.answering.running.generation.read
        known = () if read is None else read.logprobs()
        tokens = map(Emitted, prompt, chain([()], known))
        piece = self.answering.words.vocabulary.piece if self._is_plain else self._piece
        return logprob_lists(tokens, prompt_offsets([piece(token) for token in prompt], self._echo), self._piece)


class ChatWording(Wording):
    """`/v1/chat/completions`."""

    object_whole = "chat.completion"
    object_part = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def _choice(self, what: What, events: Sequence[Event] = ()) -> dict[str, Any]:
        match what:
            case "whole":
                return {"message": message_of(events)}
            case "first":
                return {"delta": {"role": "assistant", "content": text_of(events)}}
            case "part":
                return {"delta": delta_of(events)}
            case "last":
                return {"delta": {}}

    def _logprob_object(self, tokens: list[Emitted]) -> dict[str, Any]:
        return {"content": [token_logprobs(self.answering, one) for one in tokens]}


class Wordings:
    """All answers to one request."""

    def __init__(self, ones: list[Wording], base: dict[str, Any]) -> None:
        self.ones = ones
        self._base = base

    def whole(self, finish_reasons: list[str], stages: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """Returns: the whole answer. What concerns one choice stands beside it where there are several."""
        choices = [one.whole(reason) for one, reason in zip(self.ones, finish_reasons, strict=True)]
        extras = [one.prompt_ids() | one.statistics(told) for one, told in zip(self.ones, stages, strict=True)]
        body = self._base | {"object": self.ones[0].object_whole, "usage": self._usage()}
        if len(choices) == 1:
            return body | {"choices": choices} | extras[0]
        return body | {"choices": [choice | extra for choice, extra in zip(choices, extras, strict=True)]}

    def usage_event(self) -> dict[str, Any]:
        """Returns: the event with the usage alone."""
        return self._base | {"object": self.ones[0].object_part, "choices": [], "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        prompts = {id(one.answering.prompt): len(one.answering.prompt) for one in self.ones}  # n answers share theirs
        prompt, completion = sum(prompts.values()), sum(one.answering.running.n_completion for one in self.ones)
        cached: dict[int, int] = {}
        for one in self.ones:  # of those that share a prompt, one has computed what was not there before them
            key, count = id(one.answering.prompt), one.answering.running.generation.n_reused
            cached[key] = min(cached.get(key, count), count)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
        }


def completion_wordings(answers: list[Answering], asked: CompletionRequest) -> Wordings:
    """Returns: the wording of completions."""
    base = _base(CompletionWording, answers[0])
    given, n = asked.prompts(), asked.n or 1
    ones: list[Wording] = []
    for index, one in enumerate(answers):
        wording = CompletionWording(
            one,
            index,
            base,
            logprobs=asked.top_logprobs_wanted() is not None,
            token_ids=bool(asked.return_token_ids),
            echo=_text_of(given[index // n], one) if asked.echo else "",
            plain=isinstance(given[index // n], str),
        )
        ones.append(wording)
    return Wordings(ones, base)


def chat_wordings(answers: list[Answering], asked: ChatRequest) -> Wordings:
    """Returns: the wording of a chat turn."""
    base = _base(ChatWording, answers[0])
    ones: list[Wording] = [
        ChatWording(one, index, base, logprobs=bool(asked.logprobs), token_ids=bool(asked.return_token_ids))
        for index, one in enumerate(answers)
    ]
    return Wordings(ones, base)


def _base(kind: type[Wording], answering: Answering) -> dict[str, Any]:
    """Returns: what stands in every object of one request."""
    return {
        "id": kind.id_prefix + answering.running.request_id,
        "created": int(time.time()),
        "model": answering.manifest.name,
        "system_fingerprint": f"fp_{answering.manifest.model_id[:12]}",
    }


def _content(text: str) -> list[Event]:
    return [Content(text)] if text else []


def _text_of(prompt: str | list[int], answering: Answering) -> str:
    return prompt if isinstance(prompt, str) else answering.words.vocabulary.text(prompt)
