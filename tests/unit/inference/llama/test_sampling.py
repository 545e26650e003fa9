"""Sampling against a plain, slow reference that sorts everything."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from shardnet.errors import EngineError
from shardnet.inference.llama.sampling import lookback, pick, top_logprobs, uniform
from shardnet.messages import Sampling

NOTHING = np.empty(0, dtype=np.int32)
Logits = NDArray[np.float32]


def random_logits(seed: int, n: int = 5000, spread: float = 3.0) -> Logits:
    return (np.random.default_rng(seed).standard_normal(n) * spread).astype(np.float32)


def reference(logits: Logits, s: Sampling, position: int, recent: list[int]) -> int:
    """The documented order, step by step, in Python floats."""
    scores = {token: float(value) for token, value in enumerate(logits)}
    for token, bias in s.logit_bias.items():
        scores[token] += bias
    window = recent if s.penalty_last_n < 0 else recent[len(recent) - min(len(recent), s.penalty_last_n) :]
    for token in set(window):
        value = scores[token]
        value = value * s.repeat_penalty if value <= 0 else value / s.repeat_penalty
        scores[token] = value - window.count(token) * s.frequency_penalty - s.presence_penalty
    order = sorted(scores, key=lambda token: (-np.float32(scores[token]), token))
    if s.temperature == 0:
        return order[0]
    if s.top_k:
        order = order[: s.top_k]
    best = scores[order[0]]
    weights = [math.exp(scores[token] - best) for token in order]
    if s.top_p < 1:
        total, reached, kept = sum(weights), 0.0, 0
        for weight in weights:
            reached += weight
            kept += 1
            if reached >= s.top_p * total:
                break
        order = order[:kept]
    if s.min_p > 0:
        order = [token for token in order if scores[token] >= best + math.log(s.min_p)]
    weights = [math.exp((scores[token] - best) / s.temperature) for token in order]
    target = uniform(s.seed, position) * sum(weights)
    for token, weight in zip(order, weights, strict=True):
        target -= weight
        if target < 0:
            return token
    return order[-1]


CASES = {
    "temperature": Sampling(temperature=1.0),
    "hot": Sampling(temperature=8.0),
    "cold": Sampling(temperature=0.05),
    "top_k": Sampling(temperature=1.2, top_k=30),
    "top_p": Sampling(temperature=1.2, top_p=0.9),
    "wide_top_p": Sampling(temperature=1.0, top_p=0.99999),
    "min_p": Sampling(temperature=2.0, min_p=0.05),
    "tiny_min_p": Sampling(temperature=6.0, min_p=1e-7),
    "all": Sampling(temperature=0.8, top_k=100, top_p=0.9, min_p=0.02),
    "top_p_and_min_p": Sampling(temperature=1.5, top_p=0.95, min_p=0.001),
    "bias": Sampling(temperature=0.7, logit_bias={7: 9.5, 8: 9.0, 9: -100.0}),
    "repeat": Sampling(temperature=1.0, repeat_penalty=1.3, penalty_last_n=8),
    "presence": Sampling(temperature=0.0, presence_penalty=4.0, frequency_penalty=1.0, penalty_last_n=-1),
    "greedy": Sampling(),
}


@pytest.mark.parametrize("sampling", CASES.values(), ids=CASES)
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_every_way_of_sampling_agrees_with_the_reference(sampling: Sampling, spread: float) -> None:
    recent = np.random.default_rng(5).integers(0, 5000, 40).astype(np.int32)
    for position in range(25):
        logits = random_logits(position, spread=spread)
        expected = reference(logits, sampling, position, recent.tolist())
        assert pick(logits, sampling, position=position, recent=recent) == expected


def test_logits_are_left_as_they_are() -> None:
    logits = random_logits(1)
    before = logits.copy()
    sampling = Sampling(temperature=1.0, repeat_penalty=1.5, logit_bias={3: 1.0})
    pick(logits, sampling, position=3, recent=np.arange(9, dtype=np.int32))
    assert np.array_equal(logits, before)


def test_the_draw_depends_on_seed_and_position_alone() -> None:
    drawn = {(seed, position): uniform(seed, position) for seed in (0, 1, 2**62) for position in (0, 1, 2, 5000)}
    assert len(set(drawn.values())) == len(drawn)
    assert all(0 <= value < 1 for value in drawn.values())
    assert uniform(1, 2) == drawn[1, 2]
    # The same on every machine and in every version: a sequence may be rebuilt elsewhere.
    assert uniform(7, 42) == pytest.approx(UNIFORM_7_42, abs=0)


UNIFORM_7_42 = 0.4345411874739785


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    counts = np.zeros(3)
    for position in range(4000):
        counts[pick(logits, Sampling(temperature=1.0, seed=9), position=position, recent=NOTHING)] += 1
    assert np.abs(counts / 4000 - [0.5, 0.3, 0.2]).max() < 0.03


def test_equal_logits_are_ordered_by_token_id() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    assert pick(logits, Sampling(), position=0, recent=NOTHING) == 0
    drawn = {pick(logits, Sampling(temperature=1.0, top_k=4), position=p, recent=NOTHING) for p in range(200)}
    assert drawn == {0, 1, 2, 3}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=5)])
def test_logits_that_are_not_numbers_are_an_error(bad: float, sampling: Sampling) -> None:
    logits = random_logits(1)
    logits[100] = bad
    with pytest.raises(EngineError, match="not numbers"):
        pick(logits, sampling, position=0, recent=NOTHING)
    with pytest.raises(EngineError, match="not numbers"):
        top_logprobs(logits, 0, 2)


class Only:
    """A grammar that permits some tokens."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = list(tokens)

    def permits(self, token: int) -> bool:
        return token in self.tokens

    def mask(self, scores: Logits) -> None:
        kept = scores[self.tokens].copy()
        scores[:] = -np.inf
        scores[self.tokens] = kept


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=50), Sampling(temperature=1.0, top_p=0.5)],
)
def test_a_grammar_leaves_only_what_it_permits(sampling: Sampling) -> None:
    logits = random_logits(3)
    drawn = {pick(logits, sampling, position=p, recent=NOTHING, grammar=Only(17, 4000, 4999)) for p in range(40)}
    assert drawn <= {17, 4000, 4999}
    best = max((17, 4000, 4999), key=lambda token: logits[token])
    assert best in drawn


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)])
def test_a_grammar_that_permits_nothing_is_an_error(sampling: Sampling) -> None:
    with pytest.raises(EngineError, match="permits no token"):
        pick(random_logits(3), sampling, position=0, recent=NOTHING, grammar=Only())


def test_log_probabilities_are_those_of_the_raw_logits() -> None:
    logits = random_logits(4, n=300)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    listed = top_logprobs(logits, 123, 5)
    assert [entry.token for entry in listed] == [123, *np.argsort(-logits, kind="stable")[:5].tolist()]
    assert all(entry.logprob == pytest.approx(exact[entry.token], abs=1e-4) for entry in listed)
    assert len(top_logprobs(logits, 123, 0)) == 1


def test_an_impossible_token_has_a_log_probability_that_json_can_carry() -> None:
    logits = np.array([0.0, -np.inf], dtype=np.float32)
    assert top_logprobs(logits, 1, 0)[0].logprob == -9999.0


def test_only_penalties_look_back() -> None:
    assert lookback(Sampling(), 100) == 0
    assert lookback(Sampling(repeat_penalty=1.1), 100) == 64
    assert lookback(Sampling(repeat_penalty=1.1), 10) == 10
    assert lookback(Sampling(presence_penalty=1.0, penalty_last_n=-1), 100) == 100
    assert lookback(Sampling(presence_penalty=1.0, penalty_last_n=0), 100) == 0
