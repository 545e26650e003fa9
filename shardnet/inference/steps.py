"""A step on its way to the engine and back, in fixed binary form (why: `shardnet.steps`). Both ends are of one version and trust each other."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple, Self

from shardnet.messages import Sampling
from shardnet.shards import TensorSpec
from shardnet.steps import Logprobs, hidden_tensors, logits_tensors, pack_sampled, row_tensors, unpack_sampled

NO_ROW = -1

NO_RUN, BEGINS_RUN, OF_RUN = range(3)
"""`Step.run`: what is told of its further steps."""

ROW = struct.Struct("<QIIi")
"""A packet to the engine: command, first shard, position, token; then the hidden state, float32 (n_embd,), unless the stage is the first.
Everything else is as in the step of this command that began the run."""

ROW_DONE = struct.Struct("<QIiffI")
"""A packet from the engine: command, position and token that were sampled, queue_us, compute_us, batch_tokens; or, from a stage without the head,
position of the row, 0, the times, and then its hidden state. What goes wrong is told by `Failed`."""

ROW_BYTES = 1 << 20
"""Room for one packet: a hidden state of 260,000 columns."""


class Step(NamedTuple):
    """Run rows `[position, position + n_tokens)` of a sequence through the loaded shards `[first_shard, end_shard)`.

    Answered by `StepDone` or `Failed`.

    KV at and after `position` is dropped first.
    Tensors: `tokens` int32 (n_tokens,); `hidden` float32 (n_tokens, n_embd) unless `first_shard` is 0.

    Attributes:
        sample_from: first row whose next token is sampled; None: the step only fills KV.
        ahead: how many further steps the engine may run by itself, each with the token that the one before it sampled; each has an answer. Only
            where the shards are the whole model.
        sampling: JSON of a `Sampling`; empty: greedy.
        run: whether later rows of its sequence will come as packets (`ROW`), or this is one of them.
    """

    command_id: str
    model_id: str
    first_shard: int
    end_shard: int
    sequence_id: str
    position: int
    n_tokens: int
    sample_from: int | None = None
    ahead: int = 0
    return_logits: bool = False
    n_embd: int = 0
    sampling: bytes = b""
    run: int = NO_RUN

    @property
    def payload_sizes(self) -> tuple[int, ...]:
        """Returns: bytes of each tensor."""
        tokens = 4 * self.n_tokens
        return (tokens, tokens * self.n_embd) if self.n_embd else (tokens,)

    @property
    def type(self) -> str:
        """Returns: the message's name."""
        return "STEP"

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Returns: what the payload holds."""
        return row_tensors(self.n_tokens, self.n_embd)

    def pack(self) -> bytes:
        """Returns: the header."""
        return (
            _STEP.pack(
                int(self.command_id, 16),
                bytes.fromhex(self.model_id),
                self.first_shard,
                self.end_shard,
                int(self.sequence_id, 16),
                self.position,
                self.n_tokens,
                NO_ROW if self.sample_from is None else self.sample_from,
                self.ahead,
                self.return_logits,
                self.n_embd,
                self.run,
            )
            + self.sampling
        )

    @classmethod
    def unpack(cls, header: memoryview) -> Self:
        """Raises: struct.error."""
        command, model, first, end, sequence, position, n_tokens, sample_from, ahead, return_logits, n_embd, run = (
            _STEP.unpack_from(header)
        )
        return cls(
            f"{command:016x}",
            model.hex(),
            first,
            end,
            f"{sequence:016x}",
            position,
            n_tokens,
            None if sample_from == NO_ROW else sample_from,
            ahead,
            return_logits,
            n_embd,
            bytes(header[_STEP.size :]),
            run,
        )


class StepDone(NamedTuple):
    """Answer to `Step`.

    Tensors: `hidden` float32 (rows, n_embd) from a stage without the head; `logits` float32 (len(tokens), n_vocab) when asked for.

    Attributes:
        tokens: sampled at rows sample_from, sample_from + 1, ... A row past the first is sampled only while the step's own next token agreed
            (the rule by which a draft is verified), so there is one token, or as many as agreed plus one.
        position: of the first of `tokens`; of the first row, where none was sampled.
        ahead: further steps that the engine runs by itself, each with an answer of its own.
        queue_us: from the frame's arrival to the start of its batch.
        compute_us: the batch in llama.cpp, and sampling this step's rows.
        batch_tokens: rows of the batch that carried it.
    """

    command_id: str
    position: int
    tokens: tuple[int, ...] = ()
    logprobs: Logprobs = ()
    ahead: int = 0
    queue_us: float = 0.0
    compute_us: float = 0.0
    batch_tokens: int = 0
    rows: int = 0
    n_embd: int = 0
    n_vocab: int = 0

    @property
    def payload_sizes(self) -> tuple[int, ...]:
        """Returns: bytes of each tensor."""
        hidden = (4 * self.rows * self.n_embd,) if self.n_embd else ()
        return (*hidden, 4 * len(self.tokens) * self.n_vocab) if self.n_vocab else hidden

    @property
    def type(self) -> str:
        """Returns: the message's name."""
        return "STEP_DONE"

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Returns: what the payload holds."""
        return hidden_tensors(self.rows, self.n_embd) + logits_tensors(len(self.tokens), self.n_vocab)

    def pack(self) -> bytes:
        """Returns: the header."""
        return _STEP_DONE.pack(
            int(self.command_id, 16),
            self.position,
            self.ahead,
            self.queue_us,
            self.compute_us,
            self.batch_tokens,
            self.rows,
            self.n_embd,
            self.n_vocab,
        ) + pack_sampled(self.tokens, self.logprobs)

    @classmethod
    def unpack(cls, header: memoryview) -> Self:
        """Raises: ValueError, struct.error."""
        command, position, ahead, queue_us, compute_us, batch_tokens, rows, n_embd, n_vocab = _STEP_DONE.unpack_from(
            header
        )
        tokens, logprobs = unpack_sampled(header, _STEP_DONE.size)
        return cls(
            f"{command:016x}",
            position,
            tokens,
            logprobs,
            ahead,
            queue_us,
            compute_us,
            batch_tokens,
            rows,
            n_embd,
            n_vocab,
        )


_STEP = struct.Struct("<Q32sHHQIIiI?IB")
_STEP_DONE = struct.Struct("<QIIffIIII")


@lru_cache(maxsize=256)
def parse_sampling(text: bytes) -> Sampling:
    """Returns: what `Step.sampling` says; greedy for nothing. Raises: pydantic.ValidationError."""
    return Sampling.model_validate_json(text) if text else Sampling()
