"""Speculation without a draft model: what is proposed, how much of it, and when it is not worth it. Pure.

A text that repeats itself foretells itself: where the last few tokens stood before, what followed then is proposed now. Source: A. Saxena, "Prompt
Lookup Decoding" (2023). The proposed tokens follow the last one through the stages row by row, each as if it were known to be right, and fill
stages and links that would stand idle; what comes out of each row tells whether the next one was right. So every row is computed as it would be
without speculation, and the answer is the same to the bit (docs/decisions/0005-rows-in-flight.md).

The cost model: while nothing is proposed the stages go on by themselves (`ExecuteTask.ahead`), and a token takes `run_s`. With proposals the
coordinator gets the first token after `start_s`, and each further one `row_s` later, as long as the proposals are right. All three are measured where
the answers arrive, links included. A proposed token is right with probability `p`, measured for each length of the run that stood there before: long
ones seldom mislead. So n = p / (1 - p) are right on average, and it pays if (n + 1) / (start_s + n row_s) beats 1 / run_s by `MARGIN`. Where that is
not known, or not so, there is a probe now and then.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

MARGIN = 1.1
FIRST_PROBE, LAST_PROBE = 16, 256
"""Chances to propose that are let pass before a probe; doubled with each probe that is refuted at once."""
PROBE_ROWS = 2
KEEP = 0.9
"""What weight an observation keeps with the next one: some ten are remembered."""
PRIOR_TRIED = 2.0
"""What is presumed of proposals behind n tokens that stood there before weighs as much as so many that were seen: n of n + `DOUBT` are right."""
DOUBT = 4
HOPELESS = 0.1
"""A token is not proposed if it, and all before it, are right with less than this probability."""
MOST_OUTLIER = 4.0
"""What took longer than so many usual times (a prompt of somebody else was before it) counts as so many."""
INDEX_AT_ONCE = 1024
"""Tokens that one call takes into the index, so that a long prompt does not hold up the event loop."""
LEAST_PLACES = 1 << 12
MOST_PLACES = 32
"""Places that are looked at for the longest run: a text of one token over and over has as many as tokens."""


class NgramIndex:
    """Where each run of `min_ngram` to `max_ngram` tokens stood last. Constant work, and a dozen bytes, for each token.

    As a compressor's dictionary: by the hash of `min_ngram` tokens the latest place behind such, and by each place the one before it; longer runs are
    found by comparing at these places. Source: RFC 1951, section 4.
    """

    def __init__(self, min_ngram: int, max_ngram: int) -> None:
        self._min, self._max = min_ngram, max_ngram
        self._latest = array("i")  # by hash; 0: none, as nothing stands before the first token
        self._before = array("i", [0])  # by place
        self._indexed = 1  # runs that end before this position, with what follows them, are known

    def catch_up(self, tokens: Sequence[int], most: int = INDEX_AT_ONCE) -> bool:
        """Take in the tokens since the last call, `most` at once. Returns: True once all are known."""
        if not self._latest:
            self._latest = array("i", bytes(4 * max(LEAST_PLACES, 1 << (2 * len(tokens)).bit_length())))
        latest, before, mask, size = self._latest, self._before, len(self._latest) - 1, self._min
        end = min(len(tokens), self._indexed + most)
        for position in range(self._indexed, end):
            place = 0
            if position >= size:
                slot = hash(tuple(tokens[position - size : position])) & mask
                place, latest[slot] = latest[slot], position
            before.append(place)
        self._indexed = max(self._indexed, end)
        return end >= len(tokens)

    def find(self, tokens: Sequence[int], count: int) -> tuple[int, list[int]]:
        """Returns: the length of the longest known end of `tokens`, and `count` tokens that followed it at its latest place; 0 if none is known.

        Where that place runs into the end of the text, the text is taken to go on repeating itself.
        """
        if len(tokens) < self._min or not self._latest:
            return 0, []
        ending = list(tokens[-self._max :])
        place = self._latest[hash(tuple(ending[-self._min :])) & (len(self._latest) - 1)]
        longest = start = 0
        for _ in range(MOST_PLACES):
            if not place or longest == len(ending):
                break
            length = _common_end(ending, tokens[max(0, place - len(ending)) : place])
            if length > longest:
                longest, start = length, place
            place = self._before[place]
        if longest < self._min:
            return 0, []
        period = len(tokens) - start
        return longest, [tokens[start + index % period] for index in range(count)]


def _common_end(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns: how many tokens at their ends are the same."""
    length = 0
    for mine, theirs in zip(reversed(one), reversed(other), strict=False):
        if mine != theirs:
            break
        length += 1
    return length


@dataclass(slots=True)
class ModelSpeculation:
    """What all requests of one model know together.

    Attributes:
        max_draft: most proposed tokens that are under way.
        rewindable: False once the model's state could not be taken back: nothing is proposed ever after.
        streams: requests in progress; beyond `max_streams` nothing is proposed, since they fill the stages themselves.
        run_s, start_s, row_s: the cost model's; None: not measured yet.
    """

    max_draft: int
    min_ngram: int
    max_ngram: int
    max_streams: int = 1
    rewindable: bool = True
    streams: int = 0
    run_s: float | None = None
    start_s: float | None = None
    row_s: float | None = None
    proposed: int = 0
    accepted: int = 0

    def ran(self, seconds: float) -> None:
        """A token of a run took so long."""
        self.run_s = _mixed(self.run_s, seconds)

    def started(self, seconds: float) -> None:
        """The first row of proposals was answered after so long."""
        self.start_s = _mixed(self.start_s, seconds)

    def followed(self, seconds: float) -> None:
        """A row behind another one was answered so much later."""
        self.row_s = _mixed(self.row_s, seconds)

    def pays(self, right: float) -> bool:
        """True if proposals that are right with this probability are known to be quicker than a run."""
        if self.run_s is None or self.start_s is None or self.row_s is None:
            return False
        n = min(self.max_draft, right / (1 - right)) if right < 1 else self.max_draft
        return (n + 1) * self.run_s > MARGIN * (self.start_s + n * self.row_s)

    def depth(self, right: float) -> int:
        """Returns: how many proposed tokens to have under way: enough to fill the pipeline, without hopeless ones."""
        depth = self.max_draft
        if self.start_s is not None and self.row_s:
            depth = min(depth, math.ceil(self.start_s / self.row_s))
        if right < 1:
            depth = min(depth, math.floor(math.log(HOPELESS) / math.log(right)) if right > HOPELESS else 1)
        return max(1, depth)


def _mixed(old: float | None, new: float) -> float:
    return new if not old else KEEP * old + (1 - KEEP) * min(new, MOST_OUTLIER * old)


@dataclass(slots=True)
class Speculator:
    """Speculation of one request.

    Attributes:
        proposed, accepted: tokens so far.
    """

    model: ModelSpeculation
    proposed: int = 0
    accepted: int = 0
    _seen: dict[int, tuple[float, float]] = field(
        default_factory=dict
    )  # (right, tried) behind n tokens that were found
    _n_found: int = 0
    _passed: int = 0
    _probe_after: int = FIRST_PROBE
    _is_probe: bool = False
    _index: NgramIndex = field(init=False)

    def __post_init__(self) -> None:
        self._index = NgramIndex(self.model.min_ngram, self.model.max_ngram)

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Returns: what may come next, `most` tokens at most; empty where nothing is known or it does not pay."""
        model = self.model
        if not model.rewindable or model.streams > model.max_streams or not self._index.catch_up(tokens):
            return []
        if most < 1 or model.run_s is None:
            return []  # what a token of a run takes is measured first
        self._n_found, found = self._index.find(tokens, min(most, model.max_draft))
        if not found:
            return []
        right = self._right
        count = model.depth(right)
        self._is_probe = not model.pays(right)
        if self._is_probe:
            self._passed += 1
            if model.row_s is not None and self._passed < self._probe_after:
                return []
            count = max(count, PROBE_ROWS)
        self._passed = 0
        return self._note(found[:count])

    def propose_more(self, tokens: Sequence[int], n_drafts: int, most: int) -> list[int]:
        """Returns: what may come behind `tokens`, the last `n_drafts` of which are proposals under way; `most` tokens at most."""
        model = self.model
        missing = min(most, model.depth(self._right) - n_drafts)
        if missing < 1 or self._is_probe or model.streams > model.max_streams:
            return []
        _, found = self._index.find(tokens, missing)
        return self._note(found)

    def judged(self, *, is_right: bool) -> None:
        """The oldest proposal was found right or wrong."""
        right, tried = self._known()
        self._seen[self._n_found] = KEEP * right + is_right, KEEP * tried + 1
        if is_right:
            self.accepted += 1
            self.model.accepted += 1
            self._n_found = min(self._n_found + 1, self.model.max_ngram)
        if self._is_probe:
            self._probe_after = FIRST_PROBE if is_right else min(LAST_PROBE, 2 * self._probe_after)

    def _note(self, found: list[int]) -> list[int]:
        self.proposed += len(found)
        self.model.proposed += len(found)
        return found

    @property
    def _right(self) -> float:
        right, tried = self._known()
        return right / tried

    def _known(self) -> tuple[float, float]:
        """Returns: proposals behind as many tokens as were found last: right ones, and all."""
        presumed = PRIOR_TRIED * self._n_found / (self._n_found + DOUBT)
        return self._seen.get(self._n_found, (presumed, PRIOR_TRIED))
