"""What a request asks of the stages, and what it gets: tokens in, tokens out. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shardnet.messages import Sampling
from shardnet.steps import TokenLogprob


@dataclass(frozen=True, slots=True)
class Emitted:
    """One token of the answer."""

    token: int
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """What is asked for.

    Attributes:
        max_tokens: length of the answer at most; the context sets another bound.
        speculate: tokens may be proposed, if the coordinator does so at all.
        is_end: tells end-of-text tokens; they are emitted, and end the answer unless `ignore_eos`.
    """

    model_id: str
    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int
    is_end: Callable[[int], bool]
    ignore_eos: bool = False
    step_deadline_s: float = 120.0
    recovery_timeout_s: float = 30.0
    epoch: int = 0
    speculate: bool = True
