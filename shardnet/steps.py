"""What travels with every token, in fixed binary form: the next step of a run, and what a step gave.

Everything else is JSON (`messages`), which is easy to read and to extend. These two are written and read once a stage and token, right after
llama.cpp has streamed all its weights through the caches: then JSON with its checks takes several times what it takes in a microbenchmark.

All integers are little endian. Ids are the 64-bit numbers that their 16 hex digits write. A header that is too short or long, or has a number out of
range, is refused by `unpack` with ValueError or struct.error, which `wire` turns into the end of the connection.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import starmap
from typing import Annotated, NamedTuple, Self

from pydantic import Field

from shardnet.shards import Dtype, TensorSpec

MAX_STAGES = 256
MAX_STEP_TOKENS = 8192
MAX_TOKEN_ID = 10_000_000
MAX_POSITION = 1 << 24
MAX_DEADLINE_S = 86_400.0
MAX_LOGPROBS = 64
MAX_SIDE = 1 << 24
"""Of n_embd and n_vocab."""
MAX_TIME_US = 1e12
MAX_LOGPROB = 1e9

TIMING = struct.Struct("<fffI")
_LOGPROB = struct.Struct("<Id")


class StageTiming(NamedTuple):
    """What one stage spent on a step, microseconds.

    Attributes:
        queue_us: waiting for the engine.
        compute_us: inside llama.cpp, the callback included.
        engine_us: daemon to engine and back, without queue and compute.
        batch_tokens: rows in the llama.cpp batch that carried the step.
    """

    queue_us: Annotated[float, Field(ge=0, le=MAX_TIME_US)]
    compute_us: Annotated[float, Field(ge=0, le=MAX_TIME_US)]
    engine_us: Annotated[float, Field(ge=0, le=MAX_TIME_US)] = 0.0
    batch_tokens: Annotated[int, Field(ge=0, le=MAX_STEP_TOKENS)] = 1


class TokenLogprob(NamedTuple):
    """A token and the natural logarithm of its probability before penalties and truncation."""

    token: int
    logprob: float


Logprobs = tuple[tuple[TokenLogprob, ...], ...]


class NextStep(NamedTuple):
    """A step of a run that goes on by itself: the last stage sends it to the first, each stage to the next. No answer of its own.

    Every stage knows the run by the `ExecuteTask` that began it, which has the same command and sequence: route, model, sampling, epoch.
    A stage that does not (it was restarted) answers SequenceGap to the coordinator.

    Tensors: `tokens` int32 (1,), always; `hidden` float32 (1, n_embd), for every stage but the first.

    Attributes:
        position: of the one row.
        ahead: further steps that may follow this one unasked.
        deadline_s: seconds, counted from receipt.
        n_embd: columns of `hidden`; 0: there is none.
        timings: of the stages that this step went through, packed (`pack_timing`): only the last stage looks at them.
    """

    command_id: str
    sequence_id: str
    stage: int
    position: int
    ahead: int
    deadline_s: float
    n_embd: int = 0
    timings: bytes = b""

    @property
    def payload_sizes(self) -> tuple[int, ...]:
        """Returns: bytes of each tensor."""
        return (4, 4 * self.n_embd) if self.n_embd else (4,)

    @property
    def type(self) -> str:
        """Returns: the message's name."""
        return "NEXT_STEP"

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Returns: what the payload holds."""
        return row_tensors(1, self.n_embd)

    def pack(self) -> bytes:
        """Returns: the header."""
        command_id, sequence_id, stage, position, ahead, deadline_s, n_embd, timings = self
        packed = NEXT_STEP.pack(int(command_id, 16), int(sequence_id, 16), stage, position, ahead, deadline_s, n_embd)
        return packed + timings

    @classmethod
    def unpack(cls, header: memoryview) -> Self:
        """Raises: ValueError, struct.error."""
        command, sequence, stage, position, ahead, deadline_s, n_embd = NEXT_STEP.unpack_from(header)
        timings = bytes(header[NEXT_STEP.size :])
        if (
            stage >= MAX_STAGES
            or position > MAX_POSITION
            or ahead > MAX_POSITION
            or not 0 < deadline_s <= MAX_DEADLINE_S
            or n_embd > MAX_SIDE
            or len(timings) % TIMING.size
            or len(timings) > MAX_STAGES * TIMING.size
        ):
            raise ValueError("a number is out of range")
        return cls(f"{command:016x}", f"{sequence:016x}", stage, position, ahead, deadline_s, n_embd, timings)


class TaskResult(NamedTuple):
    """Answer of the last stage to one step. Tensor: `logits` float32 (len(tokens), n_vocab), when they were asked for.

    Attributes:
        position: of the token that was sampled; of the step's first row, where none was.
        tokens: that token, or none. The coordinator refuses more.
        logprobs: per token: itself, then the most likely; empty if they were not asked for.
        ahead: further steps that follow unasked, each with a result of its own; 0: this one is final.
        n_vocab: columns of `logits`; 0: there are none.
    """

    command_id: str
    sequence_id: str
    position: int
    tokens: tuple[int, ...] = ()
    logprobs: Logprobs = ()
    ahead: int = 0
    n_vocab: int = 0
    timings: tuple[StageTiming, ...] = ()

    @property
    def payload_sizes(self) -> tuple[int, ...]:
        """Returns: bytes of each tensor."""
        return (4 * len(self.tokens) * self.n_vocab,) if self.n_vocab else ()

    @property
    def type(self) -> str:
        """Returns: the message's name."""
        return "TASK_RESULT"

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Returns: what the payload holds."""
        return logits_tensors(len(self.tokens), self.n_vocab)

    def pack(self) -> bytes:
        """Returns: the header."""
        command_id, sequence_id, position, tokens, logprobs, ahead, n_vocab, timings = self
        facts = (int(command_id, 16), int(sequence_id, 16), position, ahead, n_vocab, len(timings))
        return b"".join((_TASK_RESULT.pack(*facts), *starmap(TIMING.pack, timings), pack_sampled(tokens, logprobs)))

    @classmethod
    def unpack(cls, header: memoryview) -> Self:
        """Raises: ValueError, struct.error."""
        command, sequence, position, ahead, n_vocab, n_timings = _TASK_RESULT.unpack_from(header)
        _check(position <= MAX_POSITION and ahead <= MAX_POSITION and n_vocab <= MAX_SIDE, "a number is out of range")
        timings = _timings(header, _TASK_RESULT.size, n_timings)
        tokens, logprobs = unpack_sampled(header, _TASK_RESULT.size + n_timings * TIMING.size)
        return cls(f"{command:016x}", f"{sequence:016x}", position, tokens, logprobs, ahead, n_vocab, timings)


NEXT_STEP = struct.Struct("<QQHIIfI")
"""Fixed part of a `NextStep`'s header: command, sequence, stage, position, ahead, deadline_s, n_embd. The timings follow to its end."""
_TASK_RESULT = struct.Struct("<QQIIIH")
_COUNTS = struct.Struct("<HH")


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _timings(header: memoryview, start: int, count: int) -> tuple[StageTiming, ...]:
    _check(count <= MAX_STAGES, "more timings than stages")
    timings = tuple(StageTiming(*TIMING.unpack_from(header, start + i * TIMING.size)) for i in range(count))
    for queue_us, compute_us, engine_us, _ in timings:
        _check(0 <= queue_us <= MAX_TIME_US and 0 <= compute_us <= MAX_TIME_US, "a time is out of range")
        _check(0 <= engine_us <= MAX_TIME_US, "a time is out of range")
    return timings


def pack_timing(timing: StageTiming) -> bytes:
    """Returns: one part of `NextStep.timings`."""
    return TIMING.pack(*timing)


def unpack_timings(packed: bytes) -> tuple[StageTiming, ...]:
    """Returns: what `NextStep.timings` says; nothing if that is no time, or leaves no room for the last stage's own: whoever passes it on answers
    for it to the coordinator."""
    timings = tuple(map(StageTiming._make, TIMING.iter_unpack(packed)))
    if len(timings) >= MAX_STAGES or not all(0 <= us <= MAX_TIME_US for timing in timings for us in timing[:3]):
        return ()
    return timings


def pack_sampled(tokens: Sequence[int], logprobs: Logprobs) -> bytes:
    """Returns: sampled tokens and their log-probabilities, the end of a header: u16 tokens, u16 tokens with log-probabilities, the
    tokens as u32, and for each of the latter u8 count and (u32 token, f64) each."""
    packed = _COUNTS.pack(len(tokens), len(logprobs)) + struct.pack(f"<{len(tokens)}I", *tokens)
    for each in logprobs:
        packed += bytes((len(each),)) + b"".join(starmap(_LOGPROB.pack, each))
    return packed


def unpack_sampled(header: memoryview, start: int) -> tuple[tuple[int, ...], Logprobs]:
    """Returns: tokens and log-probabilities that fill `header` from `start` to its end. Raises: ValueError, struct.error."""
    n_tokens, n_logprobs = _COUNTS.unpack_from(header, start)
    start += _COUNTS.size
    _check(n_tokens <= MAX_STEP_TOKENS and n_logprobs in (0, n_tokens), "more tokens than a step has")
    tokens: tuple[int, ...] = struct.unpack_from(f"<{n_tokens}I", header, start)
    _check(max(tokens, default=0) <= MAX_TOKEN_ID, "a token is out of range")
    start += 4 * n_tokens
    logprobs: list[tuple[TokenLogprob, ...]] = []
    for _ in range(n_logprobs):
        _check(start < len(header), "the header's length is wrong")
        count = header[start]
        _check(count <= MAX_LOGPROBS, "more log-probabilities than can be asked for")
        start += 1
        each = tuple(TokenLogprob(*_LOGPROB.unpack_from(header, start + i * _LOGPROB.size)) for i in range(count))
        _check(
            all(one.token <= MAX_TOKEN_ID and -MAX_LOGPROB <= one.logprob <= MAX_LOGPROB for one in each),
            "a log-probability is out of range",
        )
        logprobs.append(each)
        start += count * _LOGPROB.size
    _check(start == len(header), "the header's length is wrong")
    return tokens, tuple(logprobs)


@lru_cache(maxsize=1024)
def row_tensors(n_tokens: int, n_embd: int) -> tuple[TensorSpec, ...]:
    """Returns: `tokens` int32 (n_tokens,) and, unless `n_embd` is 0, `hidden` float32 (n_tokens, n_embd)."""
    tokens = TensorSpec(name="tokens", dtype=Dtype.INT32, shape=(n_tokens,))
    return (tokens, *hidden_tensors(n_tokens, n_embd))


@lru_cache(maxsize=1024)
def hidden_tensors(n_tokens: int, n_embd: int) -> tuple[TensorSpec, ...]:
    """Returns: `hidden` float32 (n_tokens, n_embd); nothing if `n_embd` is 0."""
    return (TensorSpec(name="hidden", dtype=Dtype.FLOAT32, shape=(n_tokens, n_embd)),) if n_embd else ()


@lru_cache(maxsize=1024)
def logits_tensors(rows: int, n_vocab: int) -> tuple[TensorSpec, ...]:
    """Returns: `logits` float32 (rows, n_vocab); nothing if `n_vocab` is 0."""
    return (TensorSpec(name="logits", dtype=Dtype.FLOAT32, shape=(rows, n_vocab)),) if n_vocab else ()


@lru_cache(maxsize=256)
def read_tensors(n_pooled: int, rows: int, width: int) -> tuple[TensorSpec, ...]:
    """Returns: what was read of a prompt's rows: `pooled` float32 (1, n_pooled) unless that is 0, else `tokens` int32 and `logprobs` float32, both
    (rows, width); nothing if that is 0 too."""
    if n_pooled:
        return (TensorSpec(name="pooled", dtype=Dtype.FLOAT32, shape=(1, n_pooled)),)
    if not rows:
        return ()
    return (
        TensorSpec(name="tokens", dtype=Dtype.INT32, shape=(rows, width)),
        TensorSpec(name="logprobs", dtype=Dtype.FLOAT32, shape=(rows, width)),
    )


def columns(tensors: Sequence[TensorSpec], name: str) -> int:
    """Returns: the second side of the tensor called `name`; 0 if there is none."""
    return next((spec.shape[1] for spec in tensors if spec.name == name and len(spec.shape) == 2), 0)
