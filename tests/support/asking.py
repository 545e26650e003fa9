"""A running swarm, asked with bodies of our own making."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from shardnet.coordinator.api.client import ApiClient
from shardnet.library.answers import Answer
from shardnet.library.swarm_client import pieces_in


def stream_events(api: str, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
    """Yield each event of a streamed answer."""
    with ApiClient(api) as client:
        yield from client.stream(path, body)


def ask(api: str, path: str, body: dict[str, Any]) -> Answer:
    """Returns: the whole answer, timed."""
    answer = Answer()
    for event in stream_events(api, path, body | {"return_token_ids": True}):
        for piece in pieces_in(event, answer):
            answer.add(piece)
    return answer
