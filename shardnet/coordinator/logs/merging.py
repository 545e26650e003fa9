"""Which lines are wanted of whom, and in which order they are told. Pure; time is a number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shardnet.errors import UsageError
from shardnet.messages import LogTold

Level = Literal["debug", "info", "warning", "error", "critical"]
APART_S = 0.5
"""Clocks that differ by no more than this, beside the time that the answer took, count as equal: lines are told as they are written."""
ID_CHARS = 4
"""So much of a node's id at least means it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a reader wants.

    Attributes:
        nodes: names, ids or beginnings of ids; empty: everybody, who comes later included.
        lines: the newest of all daemons together, before what is followed; None: every one that is kept.
        max_age_s: no older ones; None: any.
    """

    nodes: tuple[str, ...] = ()
    level: Level = "debug"
    lines: int | None = 100
    max_age_s: float | None = None
    follows: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """A daemon whose log can be asked for.

    Attributes:
        run_id: which start of it this is: numbers of lines begin anew with each.
        tells: False for a node of an older version.
    """

    node_id: str
    name: str
    run_id: str | None = None
    tells: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the stream, or what there is to say of a log (`is_note`). `at_s`: Unix time by the coordinator's clock."""

    at_s: float
    source: Source
    text: str
    level: str = "info"
    is_note: bool = False

    def as_json(self) -> dict[str, Any]:
        """Returns: it for `GET /logs`."""
        return {
            "at_s": round(self.at_s, 3),
            "node": self.source.name,
            "node_id": self.source.node_id,
            "level": self.level,
            "text": self.text,
            "note": self.is_note,
        }


def chosen(sources: Sequence[Source], wanted: Sequence[str]) -> list[Source]:
    """Returns: the daemons that a reader means. Raises: UsageError for a name that is nobody's."""
    for name in wanted:
        if not any(_means(name, one) for one in sources):
            known = ", ".join(sorted({one.name for one in sources}))
            raise UsageError(
                f"no daemon that is connected now is called {name[:100]!r}; there are: {known}", http_status=404
            )
    return [one for one in sources if not wanted or any(_means(name, one) for name in wanted)]


def _means(name: str, source: Source) -> bool:
    return name in (source.name, source.name.partition(" (")[0]) or (
        len(name) >= ID_CHARS and source.node_id.startswith(name.lower())
    )


def ahead(told: LogTold, asked_s: float, answered_s: float) -> float:
    """Returns: by how many seconds a daemon's clock is ahead of ours; 0 where that cannot be told from the way of the answer."""
    off_s = told.clock_s - (asked_s + answered_s) / 2
    return off_s if abs(off_s) > APART_S + (answered_s - asked_s) / 2 else 0.0


def entries(source: Source, told: LogTold, ahead_s: float) -> list[Entry]:
    """Returns: a daemon's lines, by our clock."""
    return [Entry(line.at_s - ahead_s, source, line.text, line.level) for line in told.lines]


def left_out(source: Source, count: int, at_s: float) -> Entry:
    """Returns: a note that lines are missing here."""
    return Entry(
        at_s,
        source,
        f"{count} older lines are left out here: it logs more than is passed on at a time",
        "warning",
        True,
    )


def clock_note(source: Source, ahead_s: float, at_s: float) -> Entry:
    """Returns: a note that a daemon's times are told by our clock."""
    how = "ahead of" if ahead_s > 0 else "behind"
    told = f"its clock is {abs(ahead_s):.1f} s {how} the coordinator's: its lines have the coordinator's time here"
    return Entry(at_s, source, told, "info", True)


def in_order(found: Iterable[Entry]) -> list[Entry]:
    """Returns: by time; a daemon's own lines stay in the order in which it logged them."""
    return sorted(found, key=lambda one: one.at_s)
