"""The figures that move: what is measured each second, and the charts' last minutes. Pure; time is a number.

A `Reading` is what the counters say at one moment; the difference of two is a `Sample`.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
KEPT = 300
"""Samples: five minutes, at one a second."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A request in progress.

    Attributes:
        tokens: of its answer, so far.
        batch_tokens: rows of the batches that carried its last step, on average over the stages; None before there was one.
        waits: its stages were lost, and others are not ready yet.
    """

    request_id: str
    model: str
    tokens: int
    attempts: int
    waits: bool
    nodes: tuple[str, ...]
    batch_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What the coordinator's counters say.

    Attributes:
        tokens_ended: of all answers that are over.
        first_tokens: answers that have begun, ever; `first_token_s`: the seconds that they took to, all together.
        busy: node id -> share of its last second that its engine computed.
    """

    at_s: float
    tokens_ended: int
    first_tokens: int
    first_token_s: float
    queued: int
    answers: tuple[Answer, ...] = ()
    busy: Mapping[str, float] = field(default_factory=dict)


class Pulse:
    """Remembers the samples of the last minutes."""

    def __init__(self) -> None:
        self._before: Reading | None = None
        self._samples: deque[Json] = deque(maxlen=KEPT)

    def take(self, reading: Reading) -> Json:
        """Take a reading in. Returns: the sample that it makes with the one before: tokens a second of all answers, seconds to the first token of
        those that began meanwhile (None: none did), rows in a batch (None: nothing runs), each node's busy share."""
        before, self._before = self._before, reading
        batches = [one.batch_tokens for one in reading.answers if one.batch_tokens is not None]
        sample: Json = {
            "at_s": round(reading.at_s, 2),
            "tokens_per_s": 0.0,
            "first_token_s": None,
            "batch_tokens": round(statistics.fmean(batches), 2) if batches else None,
            "running": len(reading.answers),
            "queued": reading.queued,
            "busy": {node_id: round(share, 3) for node_id, share in reading.busy.items()},
        }
        if before is not None and reading.at_s > before.at_s:
            written = _tokens(reading) - _tokens(before)
            sample["tokens_per_s"] = round(max(0, written) / (reading.at_s - before.at_s), 2)
            begun = reading.first_tokens - before.first_tokens
            if begun > 0:
                sample["first_token_s"] = round((reading.first_token_s - before.first_token_s) / begun, 4)
        self._samples.append(sample)
        return sample

    @property
    def samples(self) -> list[Json]:
        """Returns: those of the last minutes, the oldest first."""
        return list(self._samples)

    @property
    def last(self) -> Json | None:
        """Returns: the last sample."""
        return self._samples[-1] if self._samples else None


def _tokens(reading: Reading) -> int:
    return reading.tokens_ended + sum(one.tokens for one in reading.answers)


def answers_json(reading: Reading) -> list[Json]:
    """Returns: requests in progress, for the pages that look at one of them."""
    return [
        {
            "request_id": one.request_id,
            "model": one.model,
            "tokens": one.tokens,
            "attempts": one.attempts,
            "waits": one.waits,
            "nodes": list(one.nodes),
        }
        for one in reading.answers
    ]


def nodes_json(nodes: list[Json]) -> list[Json]:
    """Returns: what changes all the time about each node of `/status`, as coarse as it is shown."""
    return [
        {
            "node_id": node["node_id"],
            "memory_free_bytes": _coarse(node["memory_free_bytes"]),
            "heartbeat_age_s": node["heartbeat_age_s"],
            "load": round(node["load"], 3),
            "sequences": node["sequences"],
        }
        for node in nodes
    ]


def loads_json(nodes: list[Json]) -> list[Json]:
    """Returns: every shard on its way, with its rate and the seconds that are left at that rate; None: nobody can say."""
    found = []
    for node in nodes:
        for load in node["loading"]:
            left = max(0, load["total_bytes"] - load["done_bytes"])
            known = load["total_bytes"] > 0 and load["bytes_per_s"] > 0
            found.append(
                {
                    "node_id": node["node_id"],
                    "node": node["name"],
                    "model": load["model"],
                    "shard_id": load["shard_id"],
                    "stage": load["stage"],
                    "done_bytes": load["done_bytes"],
                    "total_bytes": load["total_bytes"],
                    "bytes_per_s": round(load["bytes_per_s"]),
                    "left_s": round(left / load["bytes_per_s"], 1) if known else None,
                    "peers": load["peers"],
                }
            )
    return found


def _coarse(count: int) -> int:
    """Three digits: what more would say is noise."""
    digits = max(0, len(str(count)) - 3)
    return int(count // 10**digits * 10**digits)
