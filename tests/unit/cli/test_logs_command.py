"""What `shardnet logs` prints."""

from __future__ import annotations

import re
from typing import Any

import pytest

from shardnet.cli.logs import Painter, seconds, show
from shardnet.errors import UsageError


def entry(text: str = "[NODE] Stopped", *, node: str = "a", level: str = "info", note: bool = False) -> dict[str, Any]:
    return {"at_s": 0.0, "node": node, "node_id": node * 40, "level": level, "text": text, "note": note}


def test_times_are_read_as_people_write_them() -> None:
    assert [seconds(text) for text in ("90", "90s", "10m", "2h", "1.5d")] == [90, 90, 600, 7200, 129_600]
    for wrong in ("", "ten", "-1m", "5w", "1e9"):
        with pytest.raises(UsageError, match="write 90s, 10m"):
            seconds(wrong)


def test_a_pipe_gets_plain_lines_and_a_terminal_a_colour_for_each_daemon() -> None:
    plain = Painter(is_terminal=False).line(entry())
    assert re.fullmatch(
        r"1970-01-0\d \d\d:\d\d:\d\d a \[NODE\] Stopped|1969-12-31 \d\d:\d\d:\d\d a \[NODE\] Stopped", plain
    )
    painter = Painter(is_terminal=True)
    first, second, again = (painter.line(entry(node=name)) for name in "aba")
    assert "\x1b[36ma" in first
    assert "\x1b[32mb" in second
    assert first == again


def test_nothing_that_a_member_logs_steers_the_terminal() -> None:
    assert "\x1b" not in Painter(is_terminal=False).line(entry("a\x1b[2Jb", node="n"))


def test_lines_are_sifted_and_notes_always_told(capsys: pytest.CaptureFixture[str]) -> None:
    entries = [entry("one"), entry("two"), entry("it has left", note=True)]
    show(entries, re.compile("two"), lambda one: str(one["text"]))
    assert capsys.readouterr().out == "two\nit has left\n"
