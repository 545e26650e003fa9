"""What a request asks of the stages, and what it gets: tokens in, tokens out. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shardnet.coordinator.requests.reading import PromptReading
from shardnet.coordinator.requests.recording import Recording
from shardnet.errors import ContextExceeded, UsageError
from shardnet.log import counted
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
        max_tokens: length of the answer at most; the context sets another bound. 0: the prompt alone is run.
        speculate: tokens may be proposed, if the coordinator does so at all.
        is_end: tells end-of-text tokens; they are emitted, and end the answer unless `ignore_eos`.
        reading: what is to be told of the prompt's own rows. Such a request starts from nobody's KV: no row of it may be left out.
        arrived_at_s: when the client asked, by the clock of `Swarm.now_s`; None: when the request is opened.
        recording: what becomes of it is noted there; None: nobody wants to know.
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
    reading: PromptReading | None = None
    arrived_at_s: float | None = None
    recording: Recording | None = None


def answer_limit(n_prompt: int, n_ctx: int, max_tokens: int | None) -> int:
    """Returns: tokens of an answer at most: what was asked for (None: all that find room), and what the context leaves; 0 where 0 was asked for.

    Raises: UsageError, ContextExceeded.
    """
    if not n_prompt:
        raise UsageError("the prompt is empty: give at least one token", param="prompt")
    if n_prompt + (max_tokens != 0) > n_ctx:
        # "prompt is too long": by these words, not by the code beside them, litellm and langchain tell this error from others.
        raise ContextExceeded(
            f"the prompt is too long: it has {counted(n_prompt, 'token')}, and the context of {n_ctx} tokens has to hold it and the answer: "
            "shorten the prompt, or have the model loaded with a larger n_ctx (the coordinator: sequences.n_ctx)",
            prompt_tokens=n_prompt,
            n_ctx=n_ctx,
        )
    return min(n_ctx if max_tokens is None else max_tokens, n_ctx - n_prompt)
