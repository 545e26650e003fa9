"""How many requests each path had, by status. Paths are the routes' patterns, so that what clients make up adds nothing."""

from __future__ import annotations

from collections import Counter

OTHER = "other"
"""A path that there is not, or a method that a path does not take."""


class HttpCounts:
    """Since the start."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def expect(self, path: str) -> None:
        """A path that can be asked: its first answer is seen as one more than none."""
        self.counts[path, "200"] += 0

    def note(self, path: str, status: int) -> None:
        """A request was answered, or its answer has begun."""
        self.counts[path, str(status)] += 1
