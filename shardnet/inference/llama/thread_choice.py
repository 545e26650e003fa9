"""How many threads serve best now, learnt from what batches take. Pure: sizes and seconds in, a number out; it changes no bit of any result.

llama.cpp's threads meet after every operation, some twenty times a layer. While another process holds one of the cores, all of them wait for the
thread that is not running: on two cores that were both busy with something else, SmolLM2 decoded five times faster with one thread than with two, and
on idle ones two were half as fast again. Neither the number of cores nor the load of a moment ago tells which it is; the next step does.

So each kind of batch (a single row, a few rows, a prompt's many) has a number that serves it, and now and then another one is tried for a few
batches of sizes whose usual time is known. What a trial cost is paid for by so much work afterwards that all trials together take a small share of
the time. A number that turns out better is taken.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

FEW_ROWS = 16
"""The most rows of a batch of decode rows, as kinds go; larger ones are prompts."""
TRIED_STEPS = 4
"""A trial has at least so many batches..."""
TRIED_S = 0.1
"""...and lasts at least so many seconds, since a scheduler's turn takes some milliseconds..."""
MOST_TRIED_STEPS = 32
"""...but has no more batches than this."""
WEIGHT = 1 / 16
"""Of the newest batch in the usual time."""
BETTER = 0.93
"""The share of the usual time that a number of threads has to take to replace the one in use."""
BROKEN_OFF = 1.5
"""A trial whose batches take so many times the usual time ends at once; its first one, which makes or ends threads, may take twice that."""
TRIALS_SHARE = 0.005
"""Of the time, for trying one other number; there are five at the most."""
REST_S = 1.0
"""At least so many seconds of work lie between two trials of one number."""
SLOW = 1.5
"""A batch that takes so many times the usual time is slow; after `SLOW_STEPS` of them in a row fewer threads are tried at once."""
SLOW_STEPS = 3
DEPTH = 1024
"""Positions that count as one size: a row of a 0.5B model was seen to take 26 ms at the start, 45 behind 4,096 tokens and 109 behind 16,000."""
MOST_SIZES = 512
"""Sizes whose usual time is remembered."""

Size = tuple[Hashable, int, int]
"""What computes a batch, its rows, and how deep they lie, in steps of `DEPTH`."""


def others(threads: int, most: int) -> list[int]:
    """Returns: the numbers to try in place of `threads`, in that order: a quarter fewer and more, half and twice as many, and a single one.

    Some lie far off: where one thread too many makes all wait, so do two or three, and no small step leads out of there.
    """
    step = max(1, threads // 4)
    near = (threads - step, threads + step, threads // 2, 2 * threads, 1)
    return list(dict.fromkeys(one for one in near if 1 <= one <= most and one != threads))


@dataclass(slots=True)
class _Trial:
    threads: int
    steps: int = 0
    seconds: float = 0.0
    usual_s: float = 0.0
    lost_s: float = 0.0


@dataclass(slots=True)
class _Usual:
    """What a batch of some size takes: a mean in which older batches count less and less. Of the first ones every one counts as much."""

    seconds: float = 0.0
    count: int = 0

    @property
    def is_known(self) -> bool:
        """True once there was as much of it as a trial has."""
        return _is_long(self.count, self.count * self.seconds)

    def note(self, seconds: float) -> None:
        self.count += 1
        self.seconds += max(WEIGHT, 1 / self.count) * (seconds - self.seconds)


@dataclass(slots=True)
class _Kind:
    """What is known of one kind of batch.

    Attributes:
        worked_s: seconds that its batches took so far.
        due: threads -> when, by that clock, the number may be tried.
        slow: the last batches, where all were slow: what is usual of their size, and what they took.
    """

    threads: int
    usual: dict[Size, _Usual] = field(default_factory=dict)
    worked_s: float = 0.0
    due: dict[int, float] = field(default_factory=dict)
    slow: list[tuple[_Usual, float]] = field(default_factory=list)
    trial: _Trial | None = None


class ThreadChoice:
    """Tells before each batch how many threads it gets, and is told what it took. One for all contexts of a process: they share its cores.

    Args:
        most: threads that there may be.
        first: what to begin with, where something is known of what else the machine does.
        learns: False: it is always `most`.
    """

    def __init__(self, most: int, *, first: int | None = None, learns: bool = True) -> None:
        self._first = first or most
        self._most = most
        self._learns = learns
        self._kinds: dict[str, _Kind] = {}
        self._asked: tuple[_Kind, Size, _Trial | None] | None = None

    @property
    def most(self) -> int:
        """Returns: threads that there may be."""
        return self._most

    @most.setter
    def most(self, most: int) -> None:
        if most != self._most:
            self._most = most
            self._kinds.clear()  # who shares the cores has changed: what was learnt was about something else

    @property
    def now(self) -> dict[str, int]:
        """Returns: the number in use for each kind of batch that there was."""
        return {name: kind.threads for name, kind in self._kinds.items()}

    def threads(self, what: Hashable, rows: int, position: int = 0) -> int:
        """Returns: threads for the next batch.

        Args:
            what: computes it: batches of the same `what` and `rows` about the same `position` take about the same time.
            position: of its rows, in the mean.
        """
        if not self._learns or self._most == 1:
            self._asked = None
            return self._most
        name = "row" if rows == 1 else "rows" if rows <= FEW_ROWS else "prompt"
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = _Kind(min(self._first, self._most))
        size = (what, rows, position // DEPTH)
        usual = kind.usual.get(size)
        is_known = usual is not None and usual.is_known
        if kind.trial is None and is_known:
            due = [one for one in others(kind.threads, self._most) if kind.due.get(one, 0.0) <= kind.worked_s]
            if due:
                kind.trial = _Trial(due[0])
        trial = kind.trial if is_known else None
        self._asked = kind, size, trial
        return kind.threads if trial is None else trial.threads

    def note(self, seconds: float) -> None:
        """The batch that `threads` was last asked for took so long."""
        if self._asked is None:
            return
        kind, size, trial = self._asked
        self._asked = None
        kind.worked_s += seconds
        if trial is None:
            _note_usual(kind, size, seconds)
        else:
            _note_trial(kind, trial, kind.usual[size].seconds, seconds)


def _note_usual(kind: _Kind, size: Size, seconds: float) -> None:
    usual = kind.usual.get(size)
    if usual is None:
        if len(kind.usual) >= MOST_SIZES:
            del kind.usual[next(iter(kind.usual))]
        kind.usual[size] = _Usual()  # the first batch touches memory for the first time, and says nothing
        return
    if usual.is_known and seconds > SLOW * usual.seconds:
        kind.slow.append((usual, seconds))
        if len(kind.slow) >= SLOW_STEPS:
            _scale(kind, sum(took / its.seconds for its, took in kind.slow) / len(kind.slow))
            kind.slow.clear()
            kind.due.clear()
        return
    for its, took in kind.slow:  # they were by chance, and a part of what is usual
        its.note(took)
    kind.slow.clear()
    usual.note(seconds)


def _is_long(steps: int, seconds: float) -> bool:
    return steps >= TRIED_STEPS and (seconds >= TRIED_S or steps >= MOST_TRIED_STEPS)


def _note_trial(kind: _Kind, trial: _Trial, usual_s: float, seconds: float) -> None:
    trial.steps += 1
    trial.lost_s += seconds - usual_s
    if trial.steps == 1:
        is_hopeless = seconds > 2 * BROKEN_OFF * usual_s
    else:
        trial.seconds += seconds
        trial.usual_s += usual_s
        is_hopeless = trial.seconds > BROKEN_OFF * trial.usual_s
    if not is_hopeless and not _is_long(trial.steps, trial.seconds):
        return
    kind.trial = None
    if not is_hopeless and trial.seconds <= BETTER * trial.usual_s:
        kind.due = {kind.threads: kind.worked_s + REST_S}
        kind.threads = trial.threads
        _scale(kind, trial.seconds / trial.usual_s)
    else:
        kind.due[trial.threads] = kind.worked_s + max(REST_S, trial.lost_s / TRIALS_SHARE)


def _scale(kind: _Kind, factor: float) -> None:
    """What is usual has become so many times as long."""
    for usual in kind.usual.values():
        usual.seconds *= factor
