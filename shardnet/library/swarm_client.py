"""`SwarmClient` and `AsyncSwarmClient`: a running swarm, asked through its coordinator's HTTP API.

Knows where that API is and what its events mean. Refuses to know what happens on the nodes.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, Self, Unpack

from shardnet.coordinator.api.client import ApiClient, AsyncApiClient, find_api
from shardnet.library.answers import Answer, Messages, OnText, Options, Piece, Prompt, body_of, is_prompt, tell_all


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that the coordinator knows. `reason`: why it cannot be asked now; empty if it can."""

    name: str
    model_id: str
    is_ready: bool
    reason: str = ""


class SwarmClient:
    """A swarm for programs that wait. A context manager; several threads may use one.

    Args:
        api: the coordinator's URL; `$SHARDNET_API`, or where this machine's coordinator said it listens, if None.
        key: of the API, where it wants one; `$SHARDNET_API__KEY` if None.
        model: which one to ask, by name or id; not needed where only one is served.
        traced: the coordinator is to record what happens to each request; `trace` gives it.

    Every method raises UnreachableError if no coordinator answers, and the coordinator's own errors: UsageError and ContextExceeded for what the
    caller can mend; PlacementError, NoRoomError, Busy if it cannot be done now.
    """

    def __init__(
        self, api: str | None = None, *, key: str | None = None, model: str | None = None, traced: bool = False
    ) -> None:
        self._trace_id = secrets.token_hex(16) if traced else ""
        # W3C, "Trace Context": version, trace, parent, flags; the last one says "sampled".
        parent = {"traceparent": f"00-{self._trace_id}-{secrets.token_hex(8)}-01"} if traced else None
        self._client = ApiClient(find_api(api), key, parent)
        self._model = model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def models(self) -> list[ServedModel]:
        """Returns: the models that may be asked for, ready or not."""
        return _models_in(self._client.get("/v1/models"))

    def status(self) -> dict[str, Any]:
        """Returns: nodes, layers and who holds them, loads in progress, counters: what `shardnet status --json` prints."""
        found: dict[str, Any] = self._client.get("/status")
        return found

    def trace(self) -> dict[str, Any]:
        """Returns: what happened to this client's requests, in Chrome's trace event format (docs/metrics.md). Raises: UsageError if nothing did."""
        found: dict[str, Any] = self._client.get(f"/traces/{self._trace_id}")
        return found

    def chat(self, messages: Messages, *, on_text: OnText | None = None, **options: Unpack[Options]) -> Answer:
        """Answer a conversation, worded by the model's own chat template. Returns: the whole answer."""
        return self._whole(messages, on_text, options)

    def complete(self, prompt: Prompt, *, on_text: OnText | None = None, **options: Unpack[Options]) -> Answer:
        """Continue a text as it is. Returns: the whole answer."""
        return self._whole(prompt, on_text, options)

    def stream(self, asked: Prompt | Messages, **options: Unpack[Options]) -> Generator[Piece, None, None]:
        """Yield the answer to a conversation, or what follows a prompt, piece by piece. Closed early, it frees its place on every node."""
        return self._pieces(asked, options, Answer())

    def _whole(self, asked: Prompt | Messages, on_text: OnText | None, options: Options) -> Answer:
        answer = Answer()
        tell_all(self._pieces(asked, options, answer), on_text)
        return answer

    def _pieces(self, asked: Prompt | Messages, options: Options, answer: Answer) -> Generator[Piece, None, None]:
        path, body = _request(asked, options, self._model)
        with closing(self._client.stream(path, body)) as events:
            for event in events:
                for piece in pieces_in(event, answer):
                    yield answer.add(piece)


class AsyncSwarmClient:
    """The same for an event loop: an asynchronous context manager; `async for piece in client.stream(...)`."""

    def __init__(self, api: str | None = None, *, key: str | None = None, model: str | None = None) -> None:
        self._client = AsyncApiClient(find_api(api), key)
        self._model = model

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()

    async def models(self) -> list[ServedModel]:
        """Returns: as `SwarmClient.models`."""
        return _models_in(await self._client.get("/v1/models"))

    async def status(self) -> dict[str, Any]:
        """Returns: as `SwarmClient.status`."""
        found: dict[str, Any] = await self._client.get("/status")
        return found

    async def chat(self, messages: Messages, *, on_text: OnText | None = None, **options: Unpack[Options]) -> Answer:
        """Answer a conversation. Returns: the whole answer."""
        return await self._whole(messages, on_text, options)

    async def complete(self, prompt: Prompt, *, on_text: OnText | None = None, **options: Unpack[Options]) -> Answer:
        """Continue a text as it is. Returns: the whole answer."""
        return await self._whole(prompt, on_text, options)

    def stream(self, asked: Prompt | Messages, **options: Unpack[Options]) -> AsyncGenerator[Piece, None]:
        """Yield an answer piece by piece. Cancelled or closed early, it frees its place on every node."""
        return self._pieces(asked, options, Answer())

    async def _whole(self, asked: Prompt | Messages, on_text: OnText | None, options: Options) -> Answer:
        answer = Answer()
        async with aclosing(self._pieces(asked, options, answer)) as pieces:
            async for piece in pieces:
                if on_text is not None and piece.text:
                    on_text(piece.text)
        return answer

    async def _pieces(self, asked: Prompt | Messages, options: Options, answer: Answer) -> AsyncGenerator[Piece, None]:
        path, body = _request(asked, options, self._model)
        async with aclosing(self._client.stream(path, body)) as events:
            async for event in events:
                for piece in pieces_in(event, answer):
                    yield answer.add(piece)


def _request(asked: Prompt | Messages, options: Options, model: str | None) -> tuple[str, dict[str, Any]]:
    """Returns: path and body."""
    body = body_of(options) | {"return_token_ids": True}
    if model is not None:
        body["model"] = model
    if is_prompt(asked):
        return "/v1/completions", body | {"prompt": asked if isinstance(asked, str) else list(asked)}
    return "/v1/chat/completions", body | {"messages": list(asked)}


def pieces_in(event: dict[str, Any], answer: Answer) -> list[Piece]:
    """Returns: what an event brings of the answer's text; what it says about the answer is noted there."""
    answer.model = event.get("model") or answer.model
    answer.prompt_token_ids = event.get("prompt_token_ids") or answer.prompt_token_ids
    answer.stages = (event.get("shardnet") or {}).get("stages") or answer.stages
    pieces = []
    for choice in event.get("choices", []):
        text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        piece = Piece(text, tuple(choice.get("token_ids") or ()), choice.get("finish_reason"))
        if piece != Piece():
            pieces.append(piece)
    return pieces


def _models_in(listed: dict[str, Any]) -> list[ServedModel]:
    cards = [(card["id"], card["shardnet"]) for card in listed["data"]]
    return [ServedModel(name, one["model_id"], one["ready"], one["reason"] or "") for name, one in cards]
