"""How long a request bears with errors: the pause before each new try, and when to give up. Pure."""

from __future__ import annotations

from shardnet.errors import EngineCrashed, ShardnetError

FIRST_PAUSE_S, MOST_PAUSE_S = 0.05, 2.0
MAX_CRASHES = 3
"""A request whose every attempt takes the engine down is given up rather than repeated for ever."""


class Setbacks:
    """What went wrong with one request since it last got on.

    Args:
        patience_s: for so long nothing may go right.
    """

    def __init__(self, patience_s: float) -> None:
        self.last_error = ShardnetError("the request was never tried")
        self._patience_s = patience_s
        self._since_s: float | None = None
        self._failures = 0  # since the last token
        self._crashes = 0

    def note(self, error: ShardnetError, at_s: float) -> None:
        """Another error."""
        self.last_error = error
        if self._since_s is None:
            self._since_s = at_s
        self._failures += 1
        if isinstance(error, EngineCrashed):
            self._crashes += 1

    def excuse(self) -> None:
        """The last error was nobody's failure."""
        self._since_s, self._failures = None, 0

    def step_answered(self, *, has_token: bool) -> None:
        """A step went well. A long replay is no failure, as long as its steps are answered; but only a token makes up for what failed before."""
        self._since_s = None
        if has_token:
            self._failures, self._crashes = 0, 0

    def waits(self) -> None:
        """It is another one's turn: until it is its own again, nothing can go right or wrong."""
        self._since_s = None

    def lasts_too_long(self, at_s: float) -> bool:
        """True if nothing went right for longer than is borne."""
        return self._since_s is not None and at_s - self._since_s > self._patience_s

    @property
    def crashes_too_often(self) -> bool:
        """True if it looks as if the request itself took the engines down."""
        return self._crashes >= MAX_CRASHES

    def pause_s(self, *, is_rerouted: bool) -> float:
        """Returns: seconds before the next try. The first new route is taken at once; what fails again and again waits longer each time."""
        doublings = self._failures - (2 if is_rerouted else 1)
        return min(MOST_PAUSE_S, FIRST_PAUSE_S * 2**doublings) if doublings >= 0 else 0.0
