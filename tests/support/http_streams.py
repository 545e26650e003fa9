"""Streaming chats over raw sockets, timed, and what their times come to.

Tokens are counted by `usage`, which ends each stream: an event stands for as many tokens as its answer had, divided by its events, since a server may
hold back half a character or send two tokens at once. Gaps are those between events, as whoever reads along sees them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from shardnet.errors import ShardnetError

LIMIT_BYTES = 1 << 20
NOT_TOLD = 0


@dataclass
class Streamed:
    """One answer. Times are those of `time.perf_counter`, seconds.

    Attributes:
        at_s: when each event with a part of the answer came.
        tokens: of the answer, as `usage` has it; `prompt_tokens` likewise.
        ids, prompt_ids: tokens of the answer and of the prompt, where the server was asked for them and tells them.
    """

    sent_s: float = 0.0
    at_s: list[float] = field(default_factory=list)
    tokens: int = NOT_TOLD
    prompt_tokens: int = NOT_TOLD
    ids: list[int] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)

    @property
    def first_s(self) -> float:
        """Seconds to the first token."""
        return self.at_s[0] - self.sent_s

    @property
    def tokens_an_event(self) -> float:
        return self.tokens / len(self.at_s)

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens behind the first event, a second."""
        return self.tokens_an_event * (len(self.at_s) - 1) / (self.at_s[-1] - self.at_s[0])


async def chat(address: tuple[str, int], messages: Sequence[dict[str, str]], n_tokens: int, **more: Any) -> Streamed:
    """One greedy chat that does not end before `n_tokens` tokens. Raises: ShardnetError if the server refuses it, or does not tell the usage."""
    body = {
        "messages": messages,
        "max_tokens": n_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    } | more
    written = json.dumps(body).encode()
    host = f"{address[0]}:{address[1]}"
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(written)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(*address, limit=LIMIT_BYTES)
    found = Streamed()
    raw: list[tuple[float, bytes]] = []
    try:
        found.sent_s = time.perf_counter()
        writer.write(head.encode() + written)
        status = await reader.readline()
        if b" 200 " not in status:
            raise ShardnetError(
                f"the server answered {status.decode(errors='replace').strip()}: {await reader.read()!r}"
            )
        while (line := await reader.readline()) and b"[DONE]" not in line:
            if line.startswith(b"data: "):
                raw.append((time.perf_counter(), line[6:]))
    finally:
        writer.close()
    for at_s, line in raw:  # read when all is over: it is not to take time between tokens
        take(found, at_s, json.loads(line))
    if not found.tokens or not found.at_s:
        raise ShardnetError(f"the server told no usage, or no answer: {raw[-1:]}")
    return found


def take(found: Streamed, at_s: float, event: dict[str, Any]) -> None:
    """Take in one event. The one that opens a stream says nothing, and does not count. Raises: ShardnetError if it is an error."""
    if "error" in event:
        raise ShardnetError(f"the server ended a stream: {event['error']}")
    if usage := event.get("usage"):
        found.tokens, found.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
    found.prompt_ids += event.get("prompt_token_ids") or []
    for choice in event.get("choices", []):
        ids = choice.get("token_ids") or []
        found.ids += ids
        if ids or choice.get("delta", {}).get("content"):
            found.at_s.append(at_s)


def percentile(values: Sequence[float], share: float) -> float:
    """Returns: the smallest value that so large a share is not above."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def figures(streams: Sequence[Streamed]) -> dict[str, float]:
    """Returns: what chats that were sent at once come to.

    Tokens a second while all of them stream, from the moment when each had begun until the first one ended (0 where there was no such time), and
    of the whole, prompts included; milliseconds between events; seconds to the first one.
    """
    begin_s, end_s = max(one.at_s[0] for one in streams), min(one.at_s[-1] for one in streams)
    within = sum(one.tokens_an_event * sum(begin_s < at_s <= end_s for at_s in one.at_s) for one in streams)
    whole_s = max(one.at_s[-1] for one in streams) - min(one.sent_s for one in streams)
    gaps = [1e3 * (after - before) for one in streams for before, after in pairwise(one.at_s)]
    firsts = [one.first_s for one in streams]
    return {
        "tokens_per_s": within / (end_s - begin_s) if end_s > begin_s else 0.0,
        "whole_tokens_per_s": sum(one.tokens for one in streams) / whole_s,
        "gap_p50_ms": median(gaps),
        "gap_p99_ms": percentile(gaps, 0.99),
        "gap_max_ms": max(gaps),
        "first_p50_s": median(firsts),
        "first_p99_s": percentile(firsts, 0.99),
    }
