"""Speculation without a draft model: what is proposed, how much of it, and when it is not worth it. Pure.

A text that repeats itself foretells itself: where the last few tokens stood before, what followed then is proposed now. Source: A. Saxena, "Prompt
Lookup Decoding" (2023). The proposed tokens follow the last one through the stages row by row, each as if it were known to be right, and fill
stages and links that would stand idle; what comes out of each row tells whether the next one was right. So every row is computed as it would be
without speculation, and the answer is the same to the bit (docs/decisions/0005-rows-in-flight.md).

Where the answer goes along a text with changes, `Copying` knows its place and earlier changes better than a look-up of runs, which serves elsewhere.

The cost model: while nothing is proposed the stages go on by themselves (`ExecuteTask.ahead`), and a token takes `run_s`. With proposals the
coordinator gets the first token after `start_s`, and each further one `row_s` later, as long as the proposals are right. All three are measured where
the answers arrive, links included. A proposed token is right with probability `p`, measured for each kind: by the length of the run that stood there
before, or by how much of the text came since the last change. So n = p / (1 - p) are right on average, and it pays if
(n + 1) / (start_s + n row_s) beats 1 / run_s by `MARGIN`. Where that is not known, or not so, there is a probe now and then.

How many are under way: as many as fill the pipeline, which takes `flight_s` for one row and `stage_s` for each further one. One row more would wait
before the first stage, and behind each wrong proposal the right one would wait for it: that costs as much as a token.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from shardnet.coordinator.requests.copying import Copying
from shardnet.coordinator.requests.ngrams import NgramIndex
from shardnet.steps import StageTiming

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
COPYING = 100
"""Kinds from there on, one for each token since the last change: guesses of what goes along a text."""
SURE = 2
"""Of these, with n tokens since then, n + `SURE` of n + 2 `SURE` are presumed to be right."""
ANCHOR = 4
"""Tokens that stood there before, from which on the answer is taken to go along that text."""
LOST = 2
"""Tokens of a change, beyond which a long run elsewhere is taken for the place."""
MOST_ALONE = 16
"""Steps that are asked for one by one at most, once nothing is proposed any more."""
MOST_OUTLIER = 4.0
"""What took longer than so many usual times (a prompt of somebody else was before it) counts as so many."""


@dataclass(slots=True)
class ModelSpeculation:
    """What all requests of one model know together.

    Attributes:
        max_draft: most proposed tokens that are under way.
        rewindable: False once the model's state could not be taken back: nothing is proposed ever after.
        streams: requests in progress; beyond `max_streams` nothing is proposed, since they fill the stages themselves.
        run_s, start_s, row_s: the cost model's; None: not measured yet.
        flight_s: `start_s` where the stages stood idle before; None: not seen yet.
        stage_s: what the slowest stage computes for a row; None: the stages do not tell.
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
    flight_s: float | None = None
    stage_s: float | None = None
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

    def flew(self, seconds: float) -> None:
        """A row that found the stages idle was answered after so long."""
        self.flight_s = _mixed(self.flight_s, seconds)

    def computed(self, timings: Sequence[StageTiming]) -> None:
        """The stages spent so much on a row that was asked for."""
        if timings:
            self.stage_s = _mixed(self.stage_s, 1e-6 * max(one.compute_us for one in timings))

    def pays(self, right: float) -> bool:
        """True if proposals that are right with this probability are known to be quicker than a run."""
        if self.run_s is None or self.start_s is None or self.row_s is None:
            return False
        n = min(self.max_draft, right / (1 - right)) if right < 1 else self.max_draft
        return (n + 1) * self.run_s > MARGIN * (self.start_s + n * self.row_s)

    def depth(self, right: float) -> int:
        """Returns: how many proposed tokens to have under way, without hopeless ones.

        With w rows under way a right one costs flight / w, or what the slowest stage takes. More rows than that fills only wait, and behind a wrong
        one the next step has to wait for the one that has begun.
        """
        flight, stage = (self.flight_s, self.stage_s) if self.flight_s and self.stage_s else (self.start_s, self.row_s)
        depth = self.max_draft
        if flight and stage:

            def cost(drafts: int) -> float:
                rows = drafts + 1
                waits = min(stage, max(0.0, rows * stage - flight))
                return right * max(stage, flight / rows) + (1 - right) * (flight + waits)

            depth = min(range(1, depth + 1), key=cost)
        if right < 1:
            depth = min(depth, math.floor(math.log(HOPELESS) / math.log(right)) if right > HOPELESS else 1)
        return max(1, depth)

    @property
    def steps_alone(self) -> int:
        """Returns: steps without proposals that are better asked for one by one, for some more may come soon.

        A run that is left costs what a stage takes for a row in vain; each step that is asked for costs its way by the coordinator.
        """
        if self.run_s is None or not self.flight_s or not self.stage_s:
            return 0
        return min(MOST_ALONE, int(self.stage_s / max(self.flight_s - self.run_s, self.stage_s / MOST_ALONE)))


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
    _seen: dict[int, tuple[float, float]] = field(default_factory=dict)  # (right, tried) of each kind
    _kinds: deque[int] = field(default_factory=deque)  # of the proposals under way
    _passed: int = 0
    _alone: int = MOST_ALONE  # chances since the last proposal
    _probe_after: int = FIRST_PROBE
    _is_probe: bool = False
    _taken: int = 0  # tokens that `_copying` knows
    _copying: Copying = field(default_factory=Copying)
    _index: NgramIndex = field(init=False)

    def __post_init__(self) -> None:
        self._index = NgramIndex(self.model.min_ngram, self.model.max_ngram)

    @property
    def lets_run(self) -> bool:
        """True if the stages may go on by themselves: it is some time since something was proposed."""
        return self.model.streams > self.model.max_streams or self._alone >= self.model.steps_alone

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Returns: what may come next, `most` tokens at most; empty where nothing is known or it does not pay."""
        model = self.model
        self._alone += 1
        self._kinds.clear()
        if not model.rewindable or model.streams > model.max_streams or not self._index.catch_up(tokens):
            return []
        if most < 1 or model.run_s is None:
            return []  # what a token of a run takes is measured first
        self._catch_up(tokens)
        kinds, found = self._guess(tokens, min(most, model.max_draft))
        if not found:
            return []
        right = self._right(kinds[0])
        count = model.depth(right)
        self._is_probe = not model.pays(right)
        if self._is_probe:
            self._passed += 1
            if model.row_s is not None and self._passed < self._probe_after:
                return []
            count = max(count, PROBE_ROWS)
        self._passed = self._alone = 0
        return self._note(kinds[:count], found[:count])

    def propose_more(self, tokens: Sequence[int], drafts: list[int], most: int) -> list[int]:
        """Returns: what may come behind `tokens` and `drafts`, which are the proposals under way; `most` tokens at most."""
        model, n_drafts = self.model, len(drafts)
        count = min(n_drafts + most, model.max_draft)
        if self._is_probe or model.streams > model.max_streams or count <= n_drafts:
            return []
        while len(self._kinds) > n_drafts:
            self._kinds.pop()  # what ends the answer was proposed, and not sent
        self._catch_up(tokens)
        kinds, found = self._guess(tokens, count)
        if not found or found[:n_drafts] != drafts:
            return []
        count = model.depth(self._right(kinds[0]))
        return self._note(kinds[n_drafts:count], found[n_drafts:count])

    def judged(self, *, is_right: bool) -> None:
        """The oldest proposal was found right or wrong."""
        kind = self._kinds.popleft() if self._kinds else 0
        right, tried = self._known(kind)
        self._seen[kind] = KEEP * right + is_right, KEEP * tried + 1
        if is_right:
            self.accepted += 1
            self.model.accepted += 1
        if self._is_probe:
            self._probe_after = FIRST_PROBE if is_right else min(LAST_PROBE, 2 * self._probe_after)

    def _note(self, kinds: list[int], found: list[int]) -> list[int]:
        self._kinds += kinds
        self.proposed += len(found)
        self.model.proposed += len(found)
        return found

    def _catch_up(self, tokens: Sequence[int]) -> None:
        """Take the tokens in that came since the last call."""
        for position in range(self._taken or len(tokens), len(tokens)):
            self._copying.take(tokens, position)
        self._taken = len(tokens)

    def _guess(self, tokens: Sequence[int], count: int) -> tuple[list[int], list[int]]:
        """Returns: kinds and tokens, as many as asked for or none."""
        copying, longest_known = self._copying, self.model.max_ngram
        longest = place = 0
        if copying.streak < ANCHOR:
            longest, place = self._index.place(tokens)
        is_lost = not copying.has_place or (copying.edit_tokens > LOST and longest == longest_known)
        if is_lost and longest >= ANCHOR:
            copying.begin(place, longest)
        first, found = COPYING + copying.streak, copying.guess(tokens, count)
        if found and (not longest or self._right(min(first, COPYING + longest_known)) >= self._right(longest)):
            return [min(first + index, COPYING + longest_known) for index in range(count)], found
        period = len(tokens) - place
        found = [tokens[place + index % period] for index in range(count)] if longest else []
        return [min(longest + index, longest_known) for index in range(len(found))], found

    def _right(self, kind: int) -> float:
        right, tried = self._known(kind)
        return right / tried

    def _known(self, kind: int) -> tuple[float, float]:
        """Returns: proposals of a kind: right ones, and all."""
        right, wrong = (kind - COPYING + SURE, SURE) if kind >= COPYING else (kind, DOUBT)
        presumed = PRIOR_TRIED * right / (right + wrong)
        return self._seen.get(kind, (presumed, PRIOR_TRIED))
