"""A trace file, as a viewer reads it: spans by track, and whether they lie within one another as they should."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

SLACK_US = 0.01
"""Times are rounded to a nanosecond."""


@dataclass(frozen=True)
class Span:
    name: str
    track: tuple[int, int]
    begin_us: float
    end_us: float
    args: dict[str, Any]

    def holds(self, other: Span) -> bool:
        """True if the other one lies within this one."""
        return self.begin_us <= other.begin_us + SLACK_US and other.end_us <= self.end_us + SLACK_US


def spans(trace: dict[str, Any]) -> list[Span]:
    """Returns: all of them, in the order of the file."""
    return [
        Span(one["name"], (one["pid"], one["tid"]), one["ts"], one["ts"] + one["dur"], one["args"])
        for one in trace["traceEvents"]
        if one["ph"] == "X"
    ]


def processes(trace: dict[str, Any]) -> dict[int, str]:
    """Returns: what each process of the file is called."""
    found = [one for one in trace["traceEvents"] if one["ph"] == "M" and one["name"] == "process_name"]
    return {one["pid"]: one["args"]["name"] for one in found}


def named(found: list[Span], name: str) -> list[Span]:
    """Returns: those whose name begins so."""
    return [one for one in found if one.name.startswith(name)]


def check_nested(found: list[Span]) -> None:
    """Spans of one track hold one another, or are apart."""
    tracks: dict[tuple[int, int], list[Span]] = defaultdict(list)
    for one in found:
        assert one.end_us >= one.begin_us >= 0
        tracks[one.track].append(one)
    for inside in tracks.values():
        around: list[Span] = []
        for one in sorted(inside, key=lambda span: (span.begin_us, -span.end_us)):
            while around and around[-1].end_us <= one.begin_us + SLACK_US:
                around.pop()
            assert not around or around[-1].holds(one), f"{one} sticks out of {around[-1]}"
            around.append(one)


def check_stages(trace: dict[str, Any], n_stages: int) -> None:
    """Each stage of each answered step lies within the step, in order, and what it did within it."""
    found, names = spans(trace), processes(trace)
    request = next(pid for pid, name in names.items() if name.startswith("request"))
    steps = {one.args["step"]: one for one in found if one.track[0] == request and "answered" in one.args}
    at_stages: dict[int, list[Span]] = defaultdict(list)
    for one in found:
        if one.track[0] != request and one.name.startswith("step "):
            at_stages[one.args["step"]].append(one)
    for number, step in steps.items():
        visits = at_stages[number]
        assert len(visits) == (n_stages if step.args["answered"] else 0)
        assert [names[one.track[0]].partition(":")[0] for one in visits] == [f"stage {n}" for n in range(len(visits))]
        ends = step.begin_us
        for one in visits:
            assert step.holds(one)
            assert one.begin_us >= ends - SLACK_US, "a stage began before the one before it was done"
            ends = one.end_us
            parts = [
                part
                for part in found
                if part.track == one.track and part.args.get("step") == number and part is not one
            ]
            assert [part.name for part in parts] == ["wait in queue", "compute", "hand over"]
            assert all(one.holds(part) for part in parts)
            assert abs(sum(part.end_us - part.begin_us for part in parts) - (one.end_us - one.begin_us)) < 3 * SLACK_US
