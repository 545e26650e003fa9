"""A response, whole and as the events of its stream, in their order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from shardnet.coordinator.api.blocks import Block, Blocks, Closed, Grew, Opened, Step
from shardnet.coordinator.api.errors import error_object, status_of
from shardnet.coordinator.api.service import Answering
from shardnet.coordinator.api.streaming import COMMENT
from shardnet.coordinator.api.turns import Told
from shardnet.coordinator.api.wording import token_logprobs
from shardnet.coordinator.requests.running import Piece
from shardnet.errors import ShardnetError

PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}


class ResponseTurn:
    """One response in the making.

    Args:
        echoed: what it says again of what was asked.
        streamed: a call is told as it comes; else only when it is whole.
        logprobs: with the text's tokens and their probabilities.
    """

    def __init__(self, answering: Answering, echoed: Mapping[str, Any], *, streamed: bool, logprobs: bool) -> None:
        self.answering = answering
        self._blocks = Blocks(holds_calls=not streamed)
        self._echoed = echoed
        self._logprobs = logprobs
        self._unsent: list[dict[str, Any]] = []
        self._sent: dict[int, list[dict[str, Any]]] = {}
        self._created_s = int(time.time())
        self._n_events = 0
        self._n_cached = 0

    # -- the stream ------------------------------------------------------------------------------------------------------------

    def begin(self) -> Told:
        """See `Turn`."""
        created = self._response("in_progress", [])
        return [
            self._event("response.created", response=created),
            self._event("response.in_progress", response=created),
        ]

    def add(self, piece: Piece) -> Told:
        """See `Turn`."""
        self._n_cached = max(self._n_cached, self.answering.running.generation.n_reused)
        if self._logprobs:
            says = self.answering.words.vocabulary.piece
            self._unsent += [token_logprobs(self.answering, one) for one in piece.tokens if says(one.token)]
        told = self._told(self._blocks.take(piece.events), "completed")
        if self._blocks.open_kind not in (None, "text"):
            self._unsent = []  # tokens of reasoning and of calls
        return told

    def end(self, reason: str) -> Told:
        """See `Turn`."""
        told = self._told(self._blocks.end(), _status(reason))
        status = _status(reason)
        return [*told, self._event(f"response.{status}", response=self._finished(reason))]

    def fail(self, error: ShardnetError) -> Told:
        """See `Turn`. The event `error` has what the openai package raises an error for, beside the fields that the API's reference names."""
        told = error_object(error)
        named = {key: told[key] for key in ("code", "message", "param")}
        failed = self._response("failed", self._output("incomplete")) | {
            "error": {
                "code": "server_error" if status_of(error) >= 500 else "invalid_prompt",
                "message": told["message"],
            }
        }
        return [
            self._event("error", **named, error=told),
            self._event("response.failed", response=failed),
        ]

    def idle(self) -> bytes:
        """See `Turn`."""
        return COMMENT

    def whole(self, reason: str) -> dict[str, Any]:
        """See `Turn`."""
        self._told(self._blocks.end(), _status(reason))
        return self._finished(reason)

    # -- objects ---------------------------------------------------------------------------------------------------------------

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        number = self._n_events
        self._n_events += 1
        return {"type": kind, "sequence_number": number} | more

    def _finished(self, reason: str) -> dict[str, Any]:
        status = _status(reason)
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        finished = {"incomplete_details": details, "usage": self._usage(), "completed_at": int(time.time())}
        return self._response(status, self._output(status)) | finished

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        answering = self.answering
        return {
            "id": f"resp_{answering.running.request_id}",
            "object": "response",
            "created_at": self._created_s,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": answering.manifest.name,
            "output": output,
            "usage": None,
            **self._echoed,
        }

    def _output(self, status: str) -> list[dict[str, Any]]:
        """Returns: all items; without calls that broke off, so that nobody runs them. Their text stands behind them."""
        whole = [one for one in self._blocks.all if one.is_whole]
        return [self._item(one, status if one is whole[-1] else "completed") for one in whole]

    def _usage(self) -> dict[str, Any]:
        running = self.answering.running
        n_input, n_output = len(self.answering.prompt), running.n_completion
        return {
            "input_tokens": n_input,
            "input_tokens_details": {"cached_tokens": self._n_cached, "cache_write_tokens": 0},
            "output_tokens": n_output,
            "output_tokens_details": {"reasoning_tokens": running.n_reasoning},
            "total_tokens": n_input + n_output,
        }

    def _id(self, block: Block) -> str:
        return f"{PREFIXES[block.kind]}_{self.answering.running.request_id}_{block.index}"

    def _item(self, block: Block, status: str, *, empty: bool = False) -> dict[str, Any]:
        """Returns: an output item. Args: empty: as it is when it begins."""
        item: dict[str, Any] = {"id": self._id(block), "status": status}
        text = "" if empty else block.text
        match block.kind:
            case "call":
                named = {"call_id": block.call_id, "name": block.name, "arguments": text}
                return {"type": "function_call"} | item | named
            case "reasoning":
                return {"type": "reasoning"} | item | {"summary": [], "content": [] if empty else [_thought(text)]}
            case "text":
                content = [] if empty else [self._part(block, text)]
                return {"type": "message"} | item | {"role": "assistant", "content": content}

    def _part(self, block: Block, text: str) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": text,
            "annotations": [],
            "logprobs": self._sent.get(block.index, []) if text else [],
        }

    # -- events of blocks --------------------------------------------------------------------------------------------------------

    def _told(self, steps: Sequence[Step], status: str) -> Told:
        return [event for step in steps for event in self._step(step, status)]

    def _step(self, step: Step, status: str) -> Told:
        match step:
            case Opened(block):
                return self._opened(block)
            case Grew(block, text):
                return [self._grown(block, text)]
            case Closed(block):
                return self._closed(block, status if block.is_whole else "incomplete")

    def _opened(self, block: Block) -> Told:
        item = self._item(block, "in_progress", empty=True)
        added = self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind == "call":
            return [added]
        part = _thought("") if block.kind == "reasoning" else self._part(block, "")
        return [added, self._event("response.content_part.added", **self._at(block), part=part)]

    def _grown(self, block: Block, text: str) -> dict[str, Any]:
        match block.kind:
            case "call":
                where = {"item_id": self._id(block), "output_index": block.index}
                return self._event("response.function_call_arguments.delta", **where, delta=text)
            case "reasoning":
                return self._event("response.reasoning_text.delta", **self._at(block), delta=text)
            case "text":
                logprobs, self._unsent = self._unsent, []
                self._sent.setdefault(block.index, []).extend(logprobs)
                return self._event("response.output_text.delta", **self._at(block), delta=text, logprobs=logprobs)

    def _closed(self, block: Block, status: str) -> Told:
        text, item = block.text, self._item(block, status)
        done = self._event  # numbers count in the order in which events are made
        match block.kind:
            case "call":
                where = {"item_id": self._id(block), "output_index": block.index}
                events = [done("response.function_call_arguments.done", **where, name=block.name, arguments=text)]
            case "reasoning":
                events = [
                    done("response.reasoning_text.done", **self._at(block), text=text),
                    done("response.content_part.done", **self._at(block), part=_thought(text)),
                ]
            case "text":
                part = self._part(block, text)
                events = [
                    done("response.output_text.done", **self._at(block), text=text, logprobs=part["logprobs"]),
                    done("response.content_part.done", **self._at(block), part=part),
                ]
        return [*events, done("response.output_item.done", output_index=block.index, item=item)]

    def _at(self, block: Block) -> dict[str, Any]:
        return {"item_id": self._id(block), "output_index": block.index, "content_index": 0}


def _thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def _status(reason: str) -> str:
    return "incomplete" if reason == "length" else "completed"
