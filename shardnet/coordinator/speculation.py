"""Speculation without a draft model: what is proposed, how much of it, and when it is not worth it. Pure.

A text that repeats itself foretells itself: where the last few tokens stood before, what followed then is proposed now. One step carries the last
token and the proposal; the last stage samples row after row while they agree. Source: A. Saxena, "Prompt Lookup Decoding" (2023).

The cost model: a step of one row takes `T`, each further row `e` seconds more (both measured where the answers arrive, links included). If a
proposed token is right with probability `p` after one that was right, a step with `k` of them yields (1 - p^(k+1)) / (1 - p) tokens in T + k e
seconds. The `k` with the most tokens per second is taken; if none beats k = 0 by `MARGIN`, nothing is proposed, but for a probe now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MARGIN = 1.05
PROBE_ROWS = 2
FIRST_PROBE, LAST_PROBE = 16, 256
"""Chances to propose that are let pass before a probe; doubled with each probe that is refuted."""
KEEP = 0.9
"""What weight an observation keeps with the next one: some ten steps are remembered."""
PRIOR_RIGHT, PRIOR_TRIED = 1.0, 2.0
MOST_OUTLIER = 4.0
"""A step that took longer than so many usual ones (a prompt of somebody else was before it) counts as so many."""
INDEX_AT_ONCE = 1024
"""Tokens that one call takes into the index, so that a long prompt does not hold up the event loop."""


class NgramIndex:
    """Where each run of `min_ngram` to `max_ngram` tokens stood last. Constant work for each token."""

    def __init__(self, min_ngram: int, max_ngram: int) -> None:
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = 0  # runs that end before this position, with what follows them, are known

    def catch_up(self, tokens: Sequence[int], most: int = INDEX_AT_ONCE) -> bool:
        """Take in the tokens since the last call, `most` at once. Returns: True once all are known."""
        end = min(len(tokens), self._indexed + most)
        for position in range(max(1, self._indexed), end):
            for size in self._sizes:
                if size <= position:
                    self._after[tuple(tokens[position - size : position])] = position
        self._indexed = max(self._indexed, end)
        return end == len(tokens)

    def find(self, tokens: Sequence[int], count: int) -> list[int]:
        """Returns: up to `count` tokens that followed the longest known end of `tokens`, its latest place; empty if there is none.

        Where that place runs into the end of the text, the text is taken to go on repeating itself.
        """
        for size in self._sizes:
            if size <= len(tokens):
                start = self._after.get(tuple(tokens[len(tokens) - size :]))
                if start is not None:
                    period = len(tokens) - start
                    return [tokens[start + index % period] for index in range(count)]
        return []


@dataclass(slots=True)
class ModelSpeculation:
    """What all requests of one model know together.

    Attributes:
        rewindable: False once the model's state could not be taken back: nothing is proposed ever after.
        streams: requests in progress; beyond `max_streams` nothing is proposed, since steps of equal size run as one batch.
        plain_s, row_s: T and e of the cost model; None: not measured yet.
    """

    max_draft: int
    min_ngram: int
    max_ngram: int
    max_streams: int = 1
    rewindable: bool = True
    streams: int = 0
    plain_s: float | None = None
    row_s: float | None = None
    proposed: int = 0
    accepted: int = 0

    def measured(self, n_drafts: int, seconds: float) -> None:
        """A step with so many proposed tokens took so long."""
        if n_drafts == 0:
            self.plain_s = _mixed(self.plain_s, seconds)
        elif self.plain_s is not None:
            self.row_s = _mixed(self.row_s, max(0.0, seconds - self.plain_s) / n_drafts, floor=self.plain_s / 8)

    def best_draft(self, right: float) -> int:
        """Returns: how many tokens to propose, if each is right with probability `right`; 0 where it does not pay."""
        if self.plain_s is None or self.row_s is None:
            return 0
        best, most = 0, MARGIN / self.plain_s
        chance, expected = 1.0, 1.0
        for count in range(1, self.max_draft + 1):
            chance *= right
            expected += chance
            rate = expected / (self.plain_s + count * self.row_s)
            if rate > most:
                best, most = count, rate
        return best


def _mixed(old: float | None, new: float, floor: float = 0.0) -> float:
    if old is None:
        return new
    return KEEP * old + (1 - KEEP) * min(new, MOST_OUTLIER * max(old, floor))


@dataclass(slots=True)
class Speculator:
    """Speculation of one request.

    Attributes:
        proposed, accepted: tokens so far.
    """

    model: ModelSpeculation
    proposed: int = 0
    accepted: int = 0
    _right: float = PRIOR_RIGHT
    _tried: float = PRIOR_TRIED
    _passed: int = 0
    _probe_after: int = FIRST_PROBE
    _probing: bool = False
    _index: NgramIndex = field(init=False)

    def __post_init__(self) -> None:
        self._index = NgramIndex(self.model.min_ngram, self.model.max_ngram)

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Returns: what may come next, `most` tokens at most; empty where nothing is known or it does not pay."""
        model = self.model
        if not model.rewindable or not self._index.catch_up(tokens):
            return []
        if most < 1 or model.plain_s is None or model.streams > model.max_streams:
            return []  # a plain step is measured first
        found = self._index.find(tokens, min(most, model.max_draft))
        if not found:
            return []
        count = model.best_draft(self._right / self._tried)
        self._probing = count == 0
        if self._probing:
            self._passed += 1
            if model.row_s is not None and self._passed < self._probe_after:
                return []
            count = PROBE_ROWS
        self._passed = 0
        return found[:count]

    def answered(self, n_drafts: int, n_tokens: int, seconds: float) -> None:
        """A decode step with `n_drafts` proposed tokens gave `n_tokens` in `seconds`, none of which waited for anything else of this request."""
        self.model.measured(n_drafts, seconds)
        if n_drafts == 0:
            return
        right = min(n_drafts, max(0, n_tokens - 1))
        tried = min(n_drafts, right + 1)  # what stands behind a wrong one says nothing
        self._right = KEEP * self._right + right
        self._tried = KEEP * self._tried + tried
        self.proposed += n_drafts
        self.accepted += right
        self.model.proposed += n_drafts
        self.model.accepted += right
        if self._probing:
            self._probe_after = FIRST_PROBE if right == n_drafts else min(LAST_PROBE, 2 * self._probe_after)
