"""What a check has to say: how bad it is, what it is, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from shardnet.errors import printable
from shardnet.log import counted

Level = Literal["ok", "note", "warning", "fault"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "fault")
"""Each worse than the one before. `fault`: something does not work, or will not before long. `warning`: it works, but slowly, by a detour or not for
everybody. `note`: to be known."""
MARKS: dict[Level, str] = {"ok": "✓", "note": "·", "warning": "⚠️ ", "fault": "✗"}
MOST_OF_A_KIND = 8
"""Sentences of one check, level by level; the others are counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found.

    Attributes:
        check: the name of the check: one of `docs/doctor.md`.
        what: a sentence: what is so, or what is wrong.
        remedy: what to do; empty where nothing has to be done.
    """

    check: str
    level: Level
    what: str
    remedy: str = ""

    def line(self) -> str:
        """Returns: it for a terminal; nothing in it steers one."""
        told = f"{MARKS[self.level]} {self.check}: {self.what}"
        return printable(f"{told}. {self.remedy}" if self.remedy else told)


def worst(findings: Iterable[Finding]) -> Level:
    """Returns: the worst level among them."""
    return max((one.level for one in findings), key=LEVELS.index, default="ok")


def few(findings: list[Finding]) -> list[Finding]:
    """Returns: the findings of one check, the worst first, so many of each level at most, and how many more there are."""
    kept: list[Finding] = []
    for level in reversed(LEVELS):
        same = [one for one in findings if one.level == level]
        kept += same[:MOST_OF_A_KIND]
        if len(same) > MOST_OF_A_KIND:
            kept.append(Finding(same[0].check, level, f"and {len(same) - MOST_OF_A_KIND} more of this kind"))
    return kept


def summary(findings: list[Finding]) -> str:
    """Returns: how many of each kind, in words."""
    counts = {level: sum(one.level == level for one in findings) for level in LEVELS}
    if not counts["fault"] and not counts["warning"]:
        return "All is well."
    told = [counted(counts[level], level) for level in ("fault", "warning") if counts[level]]
    return f"{' and '.join(told)}." + ("" if counts["fault"] else " Nothing has to be mended.")


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """Returns: all of it for programs."""
    return {"worst": worst(findings), "findings": [asdict(one) for one in findings]}
