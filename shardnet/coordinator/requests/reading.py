"""What a request wants of its prompt's own rows, which step is to tell which of it, and what was told. Sans-I/O.

Each step tells of its own rows alone, so nothing of a prompt is known twice or remembered by a stage. What an attempt did not tell to its end is told
anew by the next one; what was told whole is kept, however the answer then goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import RemoteProtocolError
from shardnet.messages import Reading, RowsRead
from shardnet.shards import Dtype, TensorSpec
from shardnet.steps import TokenLogprob
from shardnet.wire import Frame

Kind = Literal["mean", "cls", "last", "logprobs"]
NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class PromptReading:
    """What is wanted: the final hidden states, pooled as `mean`, `cls` (the first one) or `last`; or the prompt's log-probabilities.

    Attributes:
        top: for `logprobs`, the most likely tokens that come beside each.
    """

    kind: Kind
    top: int = 0


class PromptRead:
    """What one request was told.

    Args:
        prompt: all of its tokens; at least one.

    Attributes:
        is_complete: all that is wanted was told.
    """

    def __init__(self, wanted: PromptReading, prompt: Sequence[int]) -> None:
        self._wanted = wanted
        self._prompt = prompt
        self.is_complete = False
        self.restart()

    def restart(self) -> None:
        """Another attempt begins: unless everything was told, it all has to be told anew."""
        if self.is_complete:
            return
        self._n_asked = self._n_told = 0  # steps
        self._sum: NDArray[np.float64] | None = None
        self._logprobs: list[tuple[TokenLogprob, ...]] = []

    def of_step(self, position: int, count: int) -> Reading | None:
        """Returns: what the step with rows `[position, position + count)` is to tell; None for nothing."""
        reading = None if self.is_complete else self._of_step(position, position + count)
        self._n_asked += reading is not None
        return reading

    def _of_step(self, position: int, end: int) -> Reading | None:
        match self._wanted.kind:
            case "mean":
                return Reading(kind="sum")
            case "cls":
                return Reading(kind="first") if position == 0 else None
            case "last":
                return Reading(kind="last") if end == len(self._prompt) else None
            case "logprobs":
                following = self._prompt[end] if end < len(self._prompt) else None
                has_rows = following is not None or end - position > 1
                return Reading(kind="logprobs", top=self._wanted.top, next_token=following) if has_rows else None

    def finish(self) -> None:
        """All of the prompt was run.

        Raises: RemoteProtocolError if not everything was told that was asked for.
        """
        if self._n_told != self._n_asked:
            raise RemoteProtocolError("a stage did not tell what it was to read of the prompt")
        self.is_complete = True

    def take(self, frame: Frame[RowsRead]) -> None:
        """A stage told what it read of a step's rows. Raises: RemoteProtocolError for anything but what comes next."""
        tensors = {spec.name: (spec, data) for spec, data in zip(frame.message.tensors, frame.payloads, strict=True)}
        if tensors.keys() == {"pooled"}:
            self.take_pooled(_array(*tensors["pooled"], Dtype.FLOAT32))
        elif tensors.keys() == {"tokens", "logprobs"}:
            tokens, logprobs = _array(*tensors["tokens"], Dtype.INT32), _array(*tensors["logprobs"], Dtype.FLOAT32)
            self.take_logprobs(tokens, logprobs)
        else:
            raise RemoteProtocolError(f"a stage told {sorted(tensors)} of a prompt")

    def take_pooled(self, hidden: NDArray[np.float32]) -> None:
        """A stage told a hidden state, or the sum of some: float32 (1, n_embd).

        Raises: RemoteProtocolError for what was not asked for, or is no numbers.
        """
        if self._wanted.kind == "logprobs" or hidden.ndim != 2 or hidden.shape[0] != 1:
            raise RemoteProtocolError("a stage told hidden states that nobody asked for")
        if not np.isfinite(hidden).all():
            raise RemoteProtocolError("a stage told a hidden state that is not numbers")
        found = hidden[0].astype(np.float64)
        if self._sum is not None and (self._wanted.kind != "mean" or self._sum.shape != found.shape):
            raise RemoteProtocolError("a stage told a hidden state twice, or of another width")
        self._sum = found if self._sum is None else self._sum + found
        self._n_told += 1

    def take_logprobs(self, tokens: NDArray[np.int32], logprobs: NDArray[np.float32]) -> None:
        """A stage told the log-probabilities of some rows: both (rows, 1 + top), the rows that follow those told before.

        Raises: RemoteProtocolError for other rows than those, or what is no numbers.
        """
        first = len(self._logprobs) + 1
        expected = self._prompt[first : first + len(tokens)]
        if (
            self._wanted.kind != "logprobs"
            or tokens.shape != (len(expected), 1 + self._wanted.top)
            or logprobs.shape != tokens.shape
            or tokens[:, 0].tolist() != list(expected)
        ):
            raise RemoteProtocolError("a stage told log-probabilities of other tokens than the prompt's")
        if not (np.isfinite(logprobs).all() and (tokens >= NO_TOKEN).all()):
            raise RemoteProtocolError("a stage told log-probabilities that are not numbers")
        for ids, numbers in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            row = zip(ids, numbers, strict=True)
            self._logprobs.append(tuple(TokenLogprob(token, number) for token, number in row if token != NO_TOKEN))
        self._n_told += 1

    # -- what came of it -----------------------------------------------------------------------------------------------------

    @property
    def pooled(self) -> NDArray[np.float64]:
        """Returns: float64 (n_embd,): the pooled hidden state, not normalised, once it is complete."""
        assert self._sum is not None
        return self._sum / len(self._prompt) if self._wanted.kind == "mean" else self._sum

    @property
    def logprobs(self) -> list[tuple[TokenLogprob, ...]]:
        """Returns: for each token of the prompt but the first: itself, then the most likely in its place; once it is complete."""
        return self._logprobs


def _array(spec: TensorSpec, data: memoryview, kind: Dtype) -> NDArray[Any]:
    if spec.dtype != kind:
        raise RemoteProtocolError(f"a stage told {spec.name} as {spec.dtype}, where {kind} is expected")
    return np.frombuffer(data, dtype="<f4" if kind == Dtype.FLOAT32 else "<i4").reshape(spec.shape)
