"""How all requests went since the start: counters, and the line in the log that each request ends with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from shardnet.coordinator.requests.running import Running
from shardnet.log import get

log = get("requests")


@dataclass(slots=True)
class Totals:
    """Counters since the start."""

    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    late_answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens_proposed: int = 0
    tokens_accepted: int = 0
    prompt_rows: Counter[str] = field(default_factory=Counter)
    """By node: rows of prompts that it has run."""
    first_tokens: int = 0
    """Answers that have begun."""
    first_token_s: float = 0.0
    """Seconds from a route to the first token, of all of these together."""

    def note_prompt(self, nodes: Iterable[str], rows: int) -> None:
        """Count a chunk of a prompt that every stage has run."""
        for node_id in nodes:
            self.prompt_rows[node_id] += rows

    def began(self, running: Running, at_s: float) -> None:
        """Count the first token of an answer."""
        self.first_tokens += 1
        self.first_token_s += at_s - running.started_at_s

    def account(self, running: Running, at_s: float) -> None:
        """Count a request that is over, and log it."""
        generation = running.generation
        seconds = at_s - running.started_at_s
        self.retried += max(0, generation.attempts - 1)
        self.prompt_tokens += len(generation.spec.prompt)
        self.completion_tokens += running.n_completion
        if generation.speculator is not None:
            self.tokens_proposed += generation.speculator.proposed
            self.tokens_accepted += generation.speculator.accepted
        if generation.error is not None:
            self.failed += 1
            log.warning("request_failed", request_id=running.request_id, reason=str(generation.error))
            return
        if generation.finish_reason == "cancelled":
            self.cancelled += 1
        else:
            self.finished += 1
        decoding = seconds - ((running.first_token_at_s or 0.0) - running.started_at_s)
        log.info(
            "request_finished" if generation.finish_reason != "cancelled" else "request_cancelled",
            request_id=running.request_id,
            prompt_tokens=len(generation.spec.prompt),
            cached_tokens=generation.n_reused,
            completion_tokens=running.n_completion,
            seconds=round(seconds, 3),
            tokens_per_s=round(max(0, running.n_completion - 1) / decoding, 2) if decoding > 0 else 0.0,
            attempts=generation.attempts,
        )
