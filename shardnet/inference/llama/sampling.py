"""Picking a token from logits, in numpy. Randomness is a function of (seed, position): there is no generator with a history.

The order is that of `messages.Sampling`: logit bias, grammar, penalties, top-k, top-p, min-p, temperature, draw. Candidates stand by
(probability descending, token id ascending), and top-k, top-p and min-p each keep a beginning of that order; so only as much of it is sorted
as the answer needs, which for a vocabulary of 128k is a few hundred entries.

Knows nothing of llama.cpp: the grammar comes in as an object that says which tokens it permits.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import EngineError
from shardnet.messages import Sampling
from shardnet.steps import TokenLogprob

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot carry."""

FIRST_WINDOWS = (8.0, 20.0)
"""How far below the best score, in units of temperature, candidates are looked at before all of them are."""

Logits = NDArray[np.float32]


class TokenFilter(Protocol):
    """What a grammar offers at one position."""

    def permits(self, token: int) -> bool: ...

    def mask(self, scores: Logits) -> None:
        """Set the scores of tokens that may not come next to minus infinity."""
        ...


def uniform(seed: int, position: int) -> float:
    """Returns: a number in [0, 1) that depends on `seed` and `position` alone, the same on every machine."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed, position), digest_size=8, person=b"shardnet-draw").digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def pick(
    logits: Logits, sampling: Sampling, *, position: int, recent: NDArray[np.int32], grammar: TokenFilter | None = None
) -> int:
    """Pick the token at `position`.

    Args:
        logits: float32 (n_vocab,); not changed.
        position: where the token will stand; with the seed it decides the draw.
        recent: int32, the sequence's tokens before `position`, as many as the penalties look back or more.

    Returns: a token id.
    Raises: EngineError for logits that are not numbers, or when nothing is permitted.
    """
    scores = logits
    if sampling.logit_bias or _penalises(sampling):
        scores = logits.copy()
        _add_bias(scores, sampling.logit_bias)
        _penalise(scores, sampling, recent)
    if sampling.temperature == 0.0:
        return _best(scores, grammar)
    if grammar is not None:
        scores = scores.copy()
        grammar.mask(scores)
    return _draw(scores, sampling, uniform(sampling.seed, position))


def top_logprobs(logits: Logits, token: int, count: int) -> tuple[TokenLogprob, ...]:
    """Returns: `token` with its log-probability, then the `count` most likely tokens with theirs; all before bias, penalties and truncation."""
    best = float(logits.max())
    _refuse_non_numbers(best)
    total = best + math.log(float(np.exp(logits - np.float32(best)).sum(dtype=np.float64)))
    listed = [token, *_leading(logits, count).tolist()]
    return tuple(TokenLogprob(token=i, logprob=max(LEAST_LOGPROB, float(logits[i]) - total)) for i in listed)


def is_greedy(sampling: Sampling) -> bool:
    """True if the most likely token is always the one, whatever stands before it."""
    return sampling.temperature == 0.0 and not sampling.logit_bias and not _penalises(sampling)


def lookback(sampling: Sampling, n_tokens: int) -> int:
    """Returns: how many of a sequence's last tokens `pick` needs to see."""
    if not _penalises(sampling):
        return 0
    return n_tokens if sampling.penalty_last_n < 0 else min(n_tokens, sampling.penalty_last_n)


def _penalises(sampling: Sampling) -> bool:
    return sampling.penalty_last_n != 0 and (
        sampling.repeat_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
    )


def _add_bias(scores: Logits, bias: dict[int, float]) -> None:
    for token, value in bias.items():
        if 0 <= token < len(scores):
            scores[token] += np.float32(value)


def _penalise(scores: Logits, sampling: Sampling, recent: NDArray[np.int32]) -> None:
    """Source: llama.cpp's `llama_sampler_penalties_apply`."""
    count = lookback(sampling, len(recent))
    if count == 0:
        return
    tokens, counts = np.unique(recent[-count:], return_counts=True)
    known = (tokens >= 0) & (tokens < len(scores))
    tokens, counts = tokens[known], counts[known]
    seen = scores[tokens]
    repeat = np.float32(sampling.repeat_penalty)
    seen = np.where(seen <= 0, seen * repeat, seen / repeat)
    seen -= counts.astype(np.float32) * np.float32(sampling.frequency_penalty) + np.float32(sampling.presence_penalty)
    scores[tokens] = seen


def _best(scores: Logits, grammar: TokenFilter | None) -> int:
    token = int(scores.argmax())  # the first one among equals; a NaN wins and is then found out
    _refuse_non_numbers(float(scores[token]))
    if grammar is None or grammar.permits(token):
        return token
    masked = scores.copy()
    grammar.mask(masked)
    token = int(masked.argmax())
    if masked[token] == -np.inf:
        raise EngineError("the grammar permits no token of the vocabulary here")
    return token


def _refuse_non_numbers(best: float) -> None:
    if not math.isfinite(best):
        raise EngineError("the model gave logits that are not numbers: its file or its arithmetic is damaged")


def _draw(scores: Logits, sampling: Sampling, chance: float) -> int:
    best = float(scores.max())
    if best == -math.inf:
        raise EngineError("the grammar permits no token of the vocabulary here")
    _refuse_non_numbers(best)
    if 0 < sampling.top_k < len(scores):
        order = _leading(scores, sampling.top_k)
        return int(order[_choose(_below(scores, order, best), sampling, chance, whole=None)])
    whole = _mass(scores, best, sampling.temperature if sampling.top_p == 1.0 else 1.0)
    for window in FIRST_WINDOWS:
        order = _ordered(scores, best - window * max(1.0, sampling.temperature))
        index = _choose(_below(scores, order, best), sampling, chance, whole=whole)
        if index >= 0:
            return int(order[index])
    order = _ordered(scores, -math.inf)
    return int(order[_choose(_below(scores, order, best), sampling, chance, whole=None)])


def _choose(below: NDArray[np.float64], sampling: Sampling, chance: float, *, whole: float | None) -> int:
    """Truncate and draw.

    Args:
        below: float64 (n,), descending, scores less the best score: the beginning of the order.
        whole: the mass of all candidates, if `below` does not hold all of them: at temperature 1 when top-p is on, else at the wanted temperature.

    Returns: an index into `below`, or -1 if the answer lies beyond its end.
    """
    keep = len(below)
    if sampling.top_p < 1.0:
        reached = np.cumsum(np.exp(below))
        keep = int(np.searchsorted(reached, sampling.top_p * (reached[-1] if whole is None else whole))) + 1
    if sampling.min_p > 0.0:
        keep = min(keep, int(np.count_nonzero(below >= math.log(sampling.min_p))))
    truncates = sampling.top_p < 1.0 or sampling.min_p > 0.0
    if whole is not None and truncates and keep >= len(below):
        return -1
    weights = np.cumsum(np.exp(below[:keep] / sampling.temperature))
    total = whole if whole is not None and not truncates else float(weights[-1])
    index = int(np.searchsorted(weights, chance * total, side="right"))
    if index < len(weights):
        return index
    return -1 if whole is not None and not truncates else len(weights) - 1


def _mass(scores: Logits, best: float, temperature: float) -> float:
    return float(np.exp((scores - np.float32(best)) / np.float32(temperature)).sum(dtype=np.float64))


def _below(scores: Logits, order: NDArray[np.intp], best: float) -> NDArray[np.float64]:
    return scores[order].astype(np.float64) - best


def _ordered(scores: Logits, lowest: float) -> NDArray[np.intp]:
    """Returns: the tokens with scores above `lowest`, by (score descending, id ascending)."""
    found = np.flatnonzero(scores > lowest)
    return found[np.argsort(-scores[found], kind="stable")]


def _leading(scores: Logits, count: int) -> NDArray[np.intp]:
    """Returns: the `count` best tokens that are not at minus infinity, by (score descending, id ascending)."""
    if count <= 0:
        return np.empty(0, dtype=np.intp)
    if count >= len(scores):
        return _ordered(scores, -math.inf)
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    found = np.flatnonzero(scores >= last) if last > -np.inf else np.flatnonzero(scores > last)
    return found[np.argsort(-scores[found], kind="stable")][:count]
