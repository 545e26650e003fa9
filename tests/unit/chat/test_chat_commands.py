"""A line in, a command out; and where Markdown that still comes may be cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.chat.commands import ALIASES, HELP, Command, help_lines, option, parse, said
from shardnet.chat.markdown_parts import finished
from shardnet.chat.terminal import printable
from shardnet.errors import UsageError


def test_what_begins_with_no_slash_is_said() -> None:
    assert parse("hello /model") is None
    assert parse("//etc is a folder") is None
    assert said("//etc is a folder") == "/etc is a folder"


def test_a_command_and_what_stands_behind_it() -> None:
    assert parse("/model  smol lm ") == Command("model", "smol lm")
    assert parse("/EXIT") == Command("quit")
    assert parse("/set temperature 0.2") == Command("set", "temperature 0.2")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("/modle x", "there is no /modle, is /model meant?"),
        ("/zzz", "/help lists what there is"),
        ("/", "there is no /"),
        ("/save", "wants a file"),
        ("/undo all", "takes nothing"),
    ],
)
def test_what_is_no_command_is_told(line: str, what: str) -> None:
    with pytest.raises(UsageError) as told:
        parse(line)
    assert what in str(told.value)


def test_every_command_is_in_the_help() -> None:
    assert set(ALIASES.values()) <= set(HELP)
    text = "\n".join(help_lines(200))
    assert all(f"/{name}" in text for name in HELP)


def test_the_help_is_broken_between_words_where_a_terminal_is_narrow() -> None:
    narrow = help_lines(80)
    assert max(map(len, narrow)) <= 80
    assert " ".join(" ".join(narrow).split()) == " ".join(" ".join(help_lines(200)).split())


def test_what_is_set_is_a_field_of_the_api() -> None:
    assert option("temperature 0.2") == ("temperature", 0.2)
    assert option("stop=END") == ("stop", "END")
    assert option("seed -") == ("seed", None)
    for wrong in ("", "temperature", "a-b 3", "stream true"):
        with pytest.raises(UsageError):
            option(wrong)


def test_a_part_of_markdown_is_finished_at_an_empty_line_outside_of_code() -> None:
    assert finished("one\n\ntwo") == len("one\n\n")
    assert finished("one\n") == 0
    assert finished("```\na\n\nb") == 0
    assert finished("````\n```\n\n````\n\nx") == len("````\n```\n\n````\n\n")
    assert finished("a\n\n~~~\nb\n\n") == len("a\n\n")


@given(st.text(alphabet="a`~ \n", max_size=60), st.text(alphabet="a`~ \n", max_size=20))
def test_what_is_finished_stays_finished_whatever_follows(text: str, more: str) -> None:
    assert finished(text) <= finished(text + more)


@given(st.text())
def test_nothing_that_a_model_says_steers_a_terminal(text: str) -> None:
    assert all(char.isprintable() or char in "\n\t" for char in printable(text))
