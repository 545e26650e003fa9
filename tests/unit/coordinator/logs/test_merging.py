"""Which lines are told, in which order, by whose clock."""

from __future__ import annotations

import pytest

from shardnet.coordinator.logs.merging import Entry, Source, ahead, chosen, clock_note, entries, in_order, left_out
from shardnet.errors import UsageError
from shardnet.messages import LogLine, LogTold

COORDINATOR, ONE, TWO = Source("c" * 40, "coordinator"), Source("a1" * 20, "node (a1a1a1)"), Source("b2" * 20, "node-b")
EVERYBODY = [COORDINATOR, ONE, TWO]


def told(*lines: tuple[float, str], clock_s: float = 100.0) -> LogTold:
    numbered = enumerate(lines, start=1)
    return LogTold(
        command_id="0123456789abcdef",
        lines=tuple(LogLine(number=number, at_s=at_s, level="info", text=text) for number, (at_s, text) in numbered),
        newest=len(lines),
        clock_s=clock_s,
    )


def test_daemons_are_meant_by_name_by_plain_name_and_by_the_beginning_of_an_id() -> None:
    assert chosen(EVERYBODY, ()) == EVERYBODY
    assert chosen(EVERYBODY, ("node-b", "coordinator")) == [COORDINATOR, TWO]
    assert (
        chosen(EVERYBODY, ("node",)) == chosen(EVERYBODY, ("node (a1a1a1)",)) == chosen(EVERYBODY, ("A1A1",)) == [ONE]
    )
    with pytest.raises(UsageError, match=r"called 'a1a'; there are: coordinator, node \(a1a1a1\), node-b"):
        chosen(EVERYBODY, ("node-b", "a1a"))


def test_clocks_count_as_equal_within_what_an_answer_takes() -> None:
    assert ahead(told(clock_s=100.3), 99.9, 100.1) == 0.0
    assert ahead(told(clock_s=105.0), 99.0, 101.0) == pytest.approx(5.0)
    assert ahead(told(clock_s=101.0), 98.0, 102.0) == 0.0
    assert ahead(told(clock_s=40.0), 99.9, 100.1) == pytest.approx(-60.0)


def test_lines_are_told_by_the_coordinators_clock_in_order_of_time() -> None:
    late = entries(ONE, told((70.0, "second"), (72.0, "fourth")), 60.0)
    here = entries(COORDINATOR, told((9.0, "first"), (11.0, "third")), 0.0)
    assert [one.text for one in in_order([*late, *here])] == ["first", "second", "third", "fourth"]


def test_what_is_left_out_and_a_clock_that_is_off_are_notes() -> None:
    assert left_out(ONE, 7, 3.0).text.startswith("7 older lines are left out here")
    assert clock_note(ONE, -9.0, 3.0).text.startswith("its clock is 9.0 s behind the coordinator's")
    assert Entry(1.23456, TWO, "text").as_json() == {
        "at_s": 1.235,
        "node": "node-b",
        "node_id": TWO.node_id,
        "level": "info",
        "text": "text",
        "note": False,
    }
