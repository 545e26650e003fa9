"""A step on its way to the engine and back, in fixed binary form (why: `shardnet.steps`). Both ends are of one version and trust each other."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple, Self

from shardnet.messages import Sampling
from shardnet.shards import TensorSpec
from shardnet.steps import (
    Logprobs,
    hidden_tensors,
    logits_tensors,
    pack_sampled,
    read_tensors,
    row_tensors,
    unpack_sampled,
)

NOBODY = "0" * 40
NO_TOKEN = -1
NO_SEQUENCE = "0" * 16
READINGS = ("", "first", "last", "sum", "logprobs")
"""Kinds of `messages.Reading`, as `Step.reads` counts them; 0: nothing is read."""

TOKEN = struct.Struct("<i")
"""Of a row, between its header and its hidden state."""

ROW_BYTES = 1 << 20
"""Room for one row: a hidden state of 260,000 columns."""

ROW_LINK = struct.Struct("<Q")
"""A packet to the engine that brings an accepted connection along (SCM_RIGHTS): the link's number. A row is longer."""


class Step(NamedTuple):
    """Run rows `[position, position + n_tokens)` of a sequence through the loaded shards `[first_shard, end_shard)`.

    Answered by `StepDone` or `Failed`.

    KV at and after `position` is dropped first.
    Tensors: `tokens` int32 (n_tokens,); `hidden` float32 (n_tokens, n_embd) unless `first_shard` is 0.

    Attributes:
        samples: a token is sampled behind the last row; else the step only fills KV.
        ahead: how many further steps the engine may run by itself, each with the token that the one before it sampled; each has an answer. Only
            where the shards are the whole model.
        begins_run: whether rows of its command will follow, as `NextStep`s: packets from the daemon, or over the engine's own links.
        stage: the stage's number in the route; rows name it.
        stages: of the route.
        source: node id of the stage that hands this one its rows, the last one's for the first.
        onward: node id of the stage that gets them next, the first one's for the last.
        reads: what is told of the rows, an index into `READINGS`; only where the last shard has the head.
        top, next_token: as in `messages.Reading`; `NO_TOKEN`: nothing follows.
        copy_from: as in `ExecuteTask`; `NO_SEQUENCE`: nothing is copied.
        sampling: JSON of a `Sampling`; empty: greedy.
    """

    command_id: str
    model_id: str
    first_shard: int
    end_shard: int
    sequence_id: str
    position: int
    n_tokens: int
    samples: bool = False
    ahead: int = 0
    return_logits: bool = False
    n_embd: int = 0
    begins_run: bool = False
    stage: int = 0
    stages: int = 1
    reads: int = 0
    top: int = 0
    next_token: int = NO_TOKEN
    copy_from: str = NO_SEQUENCE
    source: str = NOBODY
    onward: str = NOBODY
    sampling: bytes = b""

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
        command, model, first, end, sequence, *numbers, copy_from, source, onward, sampling = self
        ids = (int(command, 16), bytes.fromhex(model), first, end, int(sequence, 16))
        others = (int(copy_from, 16), bytes.fromhex(source), bytes.fromhex(onward))
        return _STEP.pack(*ids, *numbers, *others) + sampling

    @classmethod
    def unpack(cls, header: memoryview) -> Self:
        """Raises: struct.error."""
        command, model, first, end, sequence, *numbers, copy_from, source, onward = _STEP.unpack_from(header)
        ids = (f"{command:016x}", model.hex(), first, end, f"{sequence:016x}")
        others = (f"{copy_from:016x}", source.hex(), onward.hex())
        return cls._make((*ids, *numbers, *others, bytes(header[_STEP.size :])))


class StepDone(NamedTuple):
    """Answer to `Step`.

    Tensors: `hidden` float32 (rows, n_embd) from a stage without the head; `logits` float32 (1, n_vocab) when asked for; what was read of the rows,
    as in `messages.RowsRead`: `pooled` float32 (1, n_pooled), or `tokens` and `logprobs` (n_read, read_width).

    Attributes:
        tokens: the one that was sampled, or none.
        position: of that token; of the first row, where none was sampled.
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
    n_pooled: int = 0
    n_read: int = 0
    read_width: int = 0

    @property
    def payload_sizes(self) -> tuple[int, ...]:
        """Returns: bytes of each tensor."""
        if self.n_pooled or self.n_read or self.n_vocab:
            return tuple([spec.nbytes for spec in self.tensors])
        return (4 * self.rows * self.n_embd,) if self.n_embd else ()

    @property
    def read(self) -> tuple[TensorSpec, ...]:
        """Returns: the last of the tensors: what was read of the rows."""
        return read_tensors(self.n_pooled, self.n_read, self.read_width)

    @property
    def type(self) -> str:
        """Returns: the message's name."""
        return "STEP_DONE"

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Returns: what the payload holds."""
        return hidden_tensors(self.rows, self.n_embd) + logits_tensors(len(self.tokens), self.n_vocab) + self.read

    def pack(self) -> bytes:
        """Returns: the header."""
        command_id, position, tokens, logprobs, *numbers = self
        return _STEP_DONE.pack(int(command_id, 16), position, *numbers) + pack_sampled(tokens, logprobs)

    @classmethod
    def unpack(cls, header: memoryview) -> Self:
        """Raises: ValueError, struct.error."""
        command, position, *numbers = _STEP_DONE.unpack_from(header)
        tokens, logprobs = unpack_sampled(header, _STEP_DONE.size)
        return cls(f"{command:016x}", position, tokens, logprobs, *numbers)


class RowDone(NamedTuple):
    """What became of one row of a run, told by a packet: of each row of the last stage, of each that the daemon has to hand on, and of some others.

    Attributes:
        stage: which of the command's stages did it.
        position: of the sampled token; of the row, from a stage without the head.
        ahead: rows that may follow; 0: the run is over for this stage.
        token: sampled; the row's own, from a stage without the head.
        deadline_s: the row's.
        queue_us, compute_us, engine_us, batch_tokens: as in `StageTiming`.
        went_on: the engine has handed the row on itself; else that is for the daemon to do.
        n_embd: columns of `hidden`; 0 where `went_on`, and from the last stage.
        timings: of the stages before, packed.
        hidden: float32 (1, n_embd).
    """

    command_id: str
    stage: int
    position: int
    ahead: int
    token: int
    deadline_s: float
    queue_us: float
    compute_us: float
    engine_us: float
    batch_tokens: int
    went_on: bool
    n_embd: int
    timings: bytes
    hidden: memoryview

    @classmethod
    def unpack(cls, packet: memoryview) -> Self:
        """Returns: what `pack_row_done` packed, with a copy of the tensor."""
        facts = _ROW_DONE.unpack_from(packet)
        end = len(packet) - 4 * facts[-1]
        timings, hidden = bytes(packet[_ROW_DONE.size : end]), memoryview(bytes(packet[end:]))
        return cls._make((f"{facts[0]:016x}", *facts[1:], timings, hidden))


_ROW_DONE = struct.Struct("<QHIIiffffI?I")
pack_row_done = _ROW_DONE.pack
"""Packs a `RowDone` without its last two attributes, which follow; the command as an integer."""

_STEP = struct.Struct("<Q32sHHQII?I?I?HHBBiQ20s20s")
_STEP_DONE = struct.Struct("<QIIffIIIIIII")


@lru_cache(maxsize=256)
def parse_sampling(text: bytes) -> Sampling:
    """Returns: what `Step.sampling` says; greedy for nothing. Raises: pydantic.ValidationError."""
    return Sampling.model_validate_json(text) if text else Sampling()
