"""A message, whole and as the events of its stream, in their order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shardnet.coordinator.api.anthropic.errors import anthropic_error
from shardnet.coordinator.api.blocks import Block, Blocks, Closed, Grew, Opened, Step
from shardnet.coordinator.api.errors import status_of
from shardnet.coordinator.api.service import Answering
from shardnet.coordinator.api.turns import Told, named_event
from shardnet.coordinator.requests.running import Piece
from shardnet.errors import ShardnetError

UNSIGNED = "unsigned"
"""In the place of a signature: clients send back no thinking that has none."""
PING = {"type": "ping"}


class MessageTurn:
    """One message in the making. A call is told when it is whole: a block has nothing that says that it broke off.

    Args:
        most: tokens that the answer may have; None until the context is full.
    """

    def __init__(self, answering: Answering, *, most: int | None) -> None:
        self.answering = answering
        self._most = most
        self._blocks = Blocks(holds_calls=True)
        self._n_cached = 0

    # -- the stream ------------------------------------------------------------------------------------------------------------

    def begin(self) -> Told:
        """See `Turn`."""
        return [{"type": "message_start", "message": self._message([]) | self._ended(None)}, PING]

    def add(self, piece: Piece) -> Told:
        """See `Turn`."""
        return self._told(self._blocks.take(piece.events))

    def end(self, reason: str) -> Told:
        """See `Turn`."""
        delta = {"type": "message_delta", "delta": self._ended(reason), "usage": self._usage()}
        return [*self._told(self._blocks.end()), delta, {"type": "message_stop"}]

    def fail(self, error: ShardnetError) -> Told:
        """See `Turn`."""
        return [anthropic_error(status_of(error), str(error))]

    def idle(self) -> bytes:
        """See `Turn`."""
        return named_event(PING)

    def whole(self, reason: str) -> dict[str, Any]:
        """See `Turn`."""
        self._blocks.end()
        return self._message([_whole(block) for block in self._blocks.all]) | self._ended(reason)

    # -- objects ---------------------------------------------------------------------------------------------------------------

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"msg_{self.answering.running.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self.answering.manifest.name,
            "content": content,
            "usage": self._usage(),
        }

    def _ended(self, reason: str | None) -> dict[str, Any]:
        met = self.answering.running.stop_met if reason == "stop" else ""
        return {"stop_reason": self._reason(reason, met), "stop_sequence": met or None}

    def _reason(self, reason: str | None, stop_met: str) -> str | None:
        match reason:
            case None:
                return None
            case "tool_calls":
                return "tool_use"
            case "length":
                is_full = self._most is None or self.answering.running.n_completion < self._most
                return "model_context_window_exceeded" if is_full else "max_tokens"
            case _:
                return "stop_sequence" if stop_met else "end_turn"

    def _usage(self) -> dict[str, Any]:
        running = self.answering.running
        self._n_cached = max(self._n_cached, running.generation.n_reused)
        return {
            "input_tokens": len(self.answering.prompt) - self._n_cached,
            "cache_read_input_tokens": self._n_cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": running.n_completion,
            "output_tokens_details": {"thinking_tokens": running.n_reasoning},
        }

    # -- events of blocks --------------------------------------------------------------------------------------------------------

    def _told(self, steps: Sequence[Step]) -> Told:
        return [event for step in steps for event in _step(step)]


def _step(step: Step) -> Told:
    match step:
        case Opened(block):
            return [{"type": "content_block_start", "index": block.index, "content_block": _empty(block)}]
        case Grew(block, text):
            return [_delta(block, text)]
        case Closed(block):
            signed = [_event(block, {"type": "signature_delta", "signature": UNSIGNED})]
            stop = {"type": "content_block_stop", "index": block.index}
            return [*signed, stop] if block.kind == "reasoning" else [stop]


def _delta(block: Block, text: str) -> dict[str, Any]:
    match block.kind:
        case "text":
            return _event(block, {"type": "text_delta", "text": text})
        case "reasoning":
            return _event(block, {"type": "thinking_delta", "thinking": text})
        case "call":
            return _event(block, {"type": "input_json_delta", "partial_json": text})


def _event(block: Block, delta: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": block.index, "delta": delta}


def _empty(block: Block) -> dict[str, Any]:
    match block.kind:
        case "text":
            return {"type": "text", "text": ""}
        case "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "call":
            return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {}}


def _whole(block: Block) -> dict[str, Any]:
    match block.kind:
        case "text":
            return _empty(block) | {"text": block.text}
        case "reasoning":
            return _empty(block) | {"thinking": block.text, "signature": UNSIGNED}
        case "call":
            return _empty(block) | {"input": json.loads(block.text)}
