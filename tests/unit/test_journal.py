"""The last lines of a log, kept and told."""

from __future__ import annotations

from shardnet.journal import Journal
from shardnet.messages import MAX_LOG_CHARS, TellLog

COMMAND = "0123456789abcdef"


def journal(*, kept: int = 5) -> Journal:
    clock = iter(range(100, 1000))
    return Journal(kept=kept, now_s=lambda: float(next(clock)))


def ask(**more: object) -> TellLog:
    return TellLog.model_validate({"command_id": COMMAND, "deadline_s": 3.0} | more)


def fill(one: Journal, *levels: str) -> None:
    for number, level in enumerate(levels, start=1):
        one.take({"event": f"line_{number}", "level": level})


def test_the_newest_lines_behind_a_number_are_told_and_those_that_are_not_kept_counted() -> None:
    one = journal()
    fill(one, *["info"] * 8)
    told = one.tell(ask(most_lines=2))
    assert [line.number for line in told.lines] == [7, 8]
    assert (told.left_out, told.newest) == (6, 8)
    told = one.tell(ask(after=7))
    assert ([line.number for line in told.lines], told.left_out) == ([8], 0)
    assert one.tell(ask(after=8)).lines == ()
    assert one.tell(ask(most_lines=0)).lines == ()


def test_lines_below_a_level_and_older_ones_are_not_wanted_and_not_counted() -> None:
    one = journal()
    fill(one, "debug", "info", "warning", "error", "info")
    assert [line.level for line in one.tell(ask(level="warning")).lines] == ["warning", "error"]
    assert one.tell(ask(level="warning")).left_out == 0
    assert [line.number for line in one.tell(ask(max_age_s=4.0)).lines] == [4, 5]


def test_a_number_of_a_journal_before_this_one_is_as_if_nothing_was_told() -> None:
    one = journal()
    fill(one, "info")
    assert [line.number for line in one.tell(ask(after=40)).lines] == [1]


def test_a_line_with_control_characters_and_a_very_long_one_fit_into_the_answer() -> None:
    one = journal()
    one.take({"event": "x", "level": "info", "path": "\x1b[2J" * 5000})
    (line,) = one.tell(ask()).lines
    assert "\x1b" not in line.text
    assert len(line.text) <= MAX_LOG_CHARS
