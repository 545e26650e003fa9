"""The smallest client of our own HTTP API that times what it streams. For demo and bench; people use `shardnet generate` or any OpenAI client."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from shardnet.errors import ShardnetError, UnreachableError


@dataclass(slots=True)
class Answer:
    """One finished request, with its clock readings."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    first_token_s: float = 0.0
    """From sending the request to the first token, seconds."""
    decode_s: float = 0.0
    """From the first token to the last, seconds."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Per stage: node, layers, median microseconds of queue, compute and engine hand-over, bytes sent on per decode step."""

    @property
    def decode_tokens_per_s(self) -> float:
        return (len(self.token_ids) - 1) / self.decode_s if self.decode_s else 0.0


def stream_events(api: str, path: str, body: dict[str, Any], timeout_s: float = 300) -> Iterator[dict[str, Any]]:
    """Yield each server-sent event of a streamed request as JSON.

    Raises: UnreachableError if nobody answers; ShardnetError with the server's own sentence.
    """
    try:
        with (
            httpx.Client(timeout=httpx.Timeout(timeout_s, connect=5), trust_env=False) as client,
            client.stream("POST", api + path, json=body | {"stream": True}) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise ShardnetError(_sentence(response.read()))
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise ShardnetError(str(event["error"].get("message", event["error"])))
                yield event
    except httpx.HTTPError as error:
        raise UnreachableError(f"the coordinator's API at {api} does not answer: {error}") from error


def _sentence(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:500]


def ask(
    api: str,
    path: str,
    body: dict[str, Any],
    on_text: Callable[[str], None] = lambda _text: None,
    timeout_s: float = 300,
) -> Answer:
    """Stream one request and time it. Raises: as `stream_events`."""
    answer = Answer()
    begin = time.perf_counter()
    first = last = 0.0
    for event in stream_events(api, path, body | {"return_token_ids": True}, timeout_s):
        answer.prompt_token_ids = event.get("prompt_token_ids") or answer.prompt_token_ids
        answer.stages = (event.get("shardnet") or {}).get("stages") or answer.stages
        for choice in event.get("choices", []):
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
            ids = choice.get("token_ids") or []
            if ids:
                last = time.perf_counter()
                first = first or last
                answer.token_ids += ids
            text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            answer.text += text
            if text:
                on_text(text)
    answer.first_token_s, answer.decode_s = first - begin, last - first
    return answer
