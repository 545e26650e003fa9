"""`POST /v1/embeddings`: texts as vectors, by the model's final hidden states. What may be asked, the work, and how the answer is worded.

Each input is a request like any other that generates nothing: it takes a place, goes through the stages, and is begun anew where a node is lost.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from shardnet.coordinator.api.schemas import Lenient, of_one_kind
from shardnet.coordinator.api.token_ids import TokenIds
from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.generation_spec import GenerationSpec
from shardnet.coordinator.requests.running import Running
from shardnet.coordinator.text.answering import PlainStream
from shardnet.coordinator.text.vocabulary import ModelPooling
from shardnet.coordinator.text.words import Words
from shardnet.errors import ContextExceeded, NoRoomError, PlacementError, UsageError
from shardnet.manifest import Manifest

MAX_INPUTS = 2048
DEFAULT_POOLING: Literal["last"] = "last"
"""Of models that say nothing: their last token is the only one that has seen all of the text."""

Pooling = Literal["mean", "cls", "last"]
Vector = NDArray[np.float32]


class EmbeddingsRequest(Lenient):
    """The body. `pooling` is ours: instead of what the model says."""

    model: str | None = Field(default=None, max_length=256)
    input: str | TokenIds | list[str] | list[TokenIds]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    pooling: Pooling | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _of_one_kind(cls, given: Any) -> Any:
        return of_one_kind(given)

    def inputs(self) -> list[str | list[int]]:
        """Returns: each input, as text or tokens. Raises: UsageError if there are none, too many, or an empty one."""
        given = self.input
        found: list[str | list[int]]
        if isinstance(given, str):
            found = [given]
        elif given and isinstance(given[0], int):
            found = [[token for token in given if isinstance(token, int)]]
        else:
            found = [one if isinstance(one, str) else list(one) for one in given if not isinstance(one, int)]
        if not found or not all(found):
            raise UsageError("input: an empty text has no embedding: leave it out", param="input")
        if len(found) > MAX_INPUTS:
            raise UsageError(f"input: {len(found)} texts are more than {MAX_INPUTS}: ask several times", param="input")
        return found

    def width(self, n_embd: int) -> int:
        """Returns: numbers of each embedding. Raises: UsageError if the model has fewer than are wanted."""
        if self.dimensions is not None and self.dimensions > n_embd:
            raise UsageError(
                f"dimensions: this model's embeddings have {n_embd}, and fewer may be asked for", param="dimensions"
            )
        return self.dimensions or n_embd


@dataclass(frozen=True, slots=True)
class Pooled:
    """How texts become one vector each, and who says so: the request, the model, or nobody."""

    kind: Pooling
    said_by: Literal["request", "model", "default"]


def pooling_of(asked: Pooling | None, of_model: ModelPooling | None) -> Pooled:
    """Returns: how to pool. Raises: UsageError for a model that gives a score, not embeddings."""
    if of_model == "rank":
        raise UsageError("this model ranks texts by a score: it gives no embeddings", param="model")
    if asked is not None:
        return Pooled(asked, "request")
    return Pooled(DEFAULT_POOLING, "default") if of_model is None else Pooled(of_model, "model")


def normalised(pooled: NDArray[np.float64], width: int) -> Vector:
    """Returns: float32 (width,): the vector's beginning, of length one. Zeros stay zeros."""
    cut = pooled[:width]
    length = float(np.sqrt(np.square(cut).sum()))
    vector: Vector = (cut / length if length > 0 else cut).astype(np.float32)
    return vector


class Embedder:
    """Runs the inputs of one request through the model.

    Args:
        spec: of a prompt.
    """

    def __init__(self, requests: Requests, spec: Callable[[list[int]], GenerationSpec], width: int) -> None:
        self._requests = requests
        self._spec = spec
        self._width = width
        self._running: deque[Running] = deque()
        self._vectors: list[Vector] = []

    async def embed(self, prompts: Sequence[list[int]]) -> list[Vector]:
        """Returns: the embedding of each prompt. Raises: what ended one of them; none runs any more then."""
        try:
            for prompt in prompts:
                self._running.append(await self._open(self._spec(prompt)))
                while self._running and self._running[0].generation.is_done:
                    self._take()
            while self._running:
                await self._running[0].wait()
                if self._running[0].generation.is_done:
                    self._take()
        finally:
            for one in self._running:
                one.close()
        return self._vectors

    async def _open(self, spec: GenerationSpec) -> Running:
        """Begin another prompt. Once some have begun, a node that is lost is waited for as long as theirs would be."""
        while True:
            try:
                return await self._requests.open(spec, PlainStream(lambda _token: b""))
            except (PlacementError, NoRoomError):
                if not self._running and not self._vectors:
                    raise
                await self._requests.until_ready(spec.model_id, spec.recovery_timeout_s)

    def _take(self) -> None:
        running = self._running[0]
        running.take()
        self._running.popleft()
        read = running.generation.read
        assert read is not None
        self._vectors.append(normalised(read.pooled, self._width))


async def token_inputs(request: EmbeddingsRequest, words: Words, n_ctx: int) -> list[list[int]]:
    """Returns: each input as tokens, with what the vocabulary puts around a text. Raises: UsageError, ContextExceeded."""
    prompts = []
    for index, one in enumerate(request.inputs()):
        tokens = await words.prompt_tokens(one, field="input")
        if len(tokens) > n_ctx:
            raise ContextExceeded(
                f"input {index} has {len(tokens)} tokens, and the context has {n_ctx}: shorten it, or have the model loaded with a larger n_ctx "
                "(the coordinator: sequences.n_ctx)",
                prompt_tokens=len(tokens),
                n_ctx=n_ctx,
                param="input",
            )
        prompts.append(tokens)
    return prompts


# -- wording ---------------------------------------------------------------------------------------------------------------------------


async def worded(
    vectors: Sequence[Vector], request: EmbeddingsRequest, manifest: Manifest, pooled: Pooled, n_tokens: int
) -> bytes:
    """Returns: the body, JSON. Made vector by vector in a thread, so that others are answered meanwhile."""
    as_text = _as_base64 if request.encoding_format == "base64" else _as_numbers

    def data() -> bytes:
        return b",".join(
            b'{"object":"embedding","index":%d,"embedding":%s}' % (index, as_text(one))
            for index, one in enumerate(vectors)
        )

    rest = {
        "model": manifest.name,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        "shardnet": {"pooling": pooled.kind, "pooling_said_by": pooled.said_by},
    }
    made = await asyncio.to_thread(data)
    return b'{"object":"list","data":[' + made + b"]," + json.dumps(rest).encode()[1:]


def _as_base64(vector: Vector) -> bytes:
    """Little-endian float32, as OpenAI's own client expects it."""
    return b'"' + base64.b64encode(vector.astype("<f4").tobytes()) + b'"'


def _as_numbers(vector: Vector) -> bytes:
    """Nine digits tell every float32 from its neighbours."""
    return b"[" + ",".join([f"{number:.9g}" for number in vector.tolist()]).encode() + b"]"
