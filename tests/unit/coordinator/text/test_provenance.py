"""Text that knows who wrote it: the same as any str to whoever asks, with the author of every character beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shardnet.coordinator.text.provenance import (
    CLIENT,
    TEMPLATE,
    Traced,
    TracedMarkup,
    author_of_message,
    authors_of,
    concat,
    sole_author,
    written_by,
)

TEXTS = st.text(alphabet="aB |<>ß\n\u3000x", max_size=12)
SHORT = st.text(alphabet="aB |<ß\n", min_size=1, max_size=2)
OPERATIONS: dict[str, Callable[[Any, str, str, int, int], Any]] = {
    "add": lambda text, a, b, i, j: text + a,
    "add to": lambda text, a, b, i, j: a + text,
    "times": lambda text, a, b, i, j: text * (i % 3),
    "slice": lambda text, a, b, i, j: text[i:j],
    "step": lambda text, a, b, i, j: text[::-1],
    "strip": lambda text, a, b, i, j: text.strip(),
    "strip these": lambda text, a, b, i, j: text.strip(a),
    "lstrip": lambda text, a, b, i, j: text.lstrip(a),
    "rstrip": lambda text, a, b, i, j: text.rstrip(),
    "removeprefix": lambda text, a, b, i, j: text.removeprefix(a),
    "removesuffix": lambda text, a, b, i, j: text.removesuffix(a),
    "split": lambda text, a, b, i, j: text.split(a),
    "split at space": lambda text, a, b, i, j: text.split(),
    "split some": lambda text, a, b, i, j: text.split(a, i),
    "split some at space": lambda text, a, b, i, j: text.split(None, i),
    "rsplit": lambda text, a, b, i, j: text.rsplit(a, i),
    "rsplit at space": lambda text, a, b, i, j: text.rsplit(None, i),
    "splitlines": lambda text, a, b, i, j: text.splitlines(),
    "splitlines with ends": lambda text, a, b, i, j: text.splitlines(True),
    "partition": lambda text, a, b, i, j: text.partition(a),
    "rpartition": lambda text, a, b, i, j: text.rpartition(a),
    "replace": lambda text, a, b, i, j: text.replace(a, b),
    "replace some": lambda text, a, b, i, j: text.replace(a, b, i),
    "replace nothing": lambda text, a, b, i, j: text.replace("", a),
    "join": lambda text, a, b, i, j: text.join([a, b, a]),
    "upper": lambda text, a, b, i, j: text.upper(),
    "lower": lambda text, a, b, i, j: text.lower(),
    "title": lambda text, a, b, i, j: text.title(),
    "capitalize": lambda text, a, b, i, j: text.capitalize(),
    "format": lambda text, a, b, i, j: text.replace("%", "") % () if "%" in text else (text + "%s!%%") % (a,),
    "others": lambda text, a, b, i, j: [text.center(20), text.zfill(9), text.find(a), text == a, len(text), repr(text)],
}


@settings(max_examples=50, deadline=None)
@given(text=TEXTS, a=SHORT, b=TEXTS, i=st.integers(-3, 8), j=st.integers(-3, 8))
def test_every_operation_gives_what_str_gives_and_each_character_keeps_its_author(
    text: str, a: str, b: str, i: int, j: int
) -> None:
    authors = "".join(chr(100 + at) for at in range(len(text)))  # one for each character
    for name, operation in OPERATIONS.items():
        plain, traced = operation(text, a, b, i, j), operation(Traced(text, authors), a, b, i, j)
        assert traced == plain, name
        for piece in traced if isinstance(traced, list | tuple) else [traced]:
            assert len(authors_of(str(piece))) == len(str(piece)), name
            for character, author in zip(str(piece), authors_of(str(piece)), strict=True):
                origin = "" if author == CLIENT else text[ord(author) - 100]
                assert author == CLIENT or character.lower() in origin.lower() + origin.upper().lower(), name


def test_what_nobody_is_known_to_have_written_is_a_clients() -> None:
    own = written_by(TEMPLATE, "abc")
    for text in (own.center(9), f"{own}"[:0] + "x", repr(own), "-".join([own, own])):
        assert TEMPLATE not in authors_of(text) or type(text) is Traced


def test_a_join_keeps_all_authors() -> None:
    text = concat([written_by(TEMPLATE, "<|"), "user", written_by(author_of_message(3), "!")])
    assert text == "<|user!"
    assert authors_of(text) == TEMPLATE * 2 + CLIENT * 4 + author_of_message(3)


def test_the_sole_author_of_a_value_is_the_one_message_that_its_texts_come_from() -> None:
    third = author_of_message(3)
    assert sole_author({"a": [written_by(third, "x")], "b": written_by(TEMPLATE, "y"), "c": 1}) == third
    assert sole_author([written_by(third, "x"), written_by(author_of_message(4), "y")]) == CLIENT
    assert sole_author({"a": "x"}) == CLIENT


def test_text_marked_safe_writes_its_neighbours_as_html_does_and_keeps_authors() -> None:
    safe = TracedMarkup("<b>", TEMPLATE * 3)
    joined = written_by(TEMPLATE, "&") + safe + "<"
    assert str(joined) == "&amp;<b>&lt;"
    assert authors_of(str(joined)) == TEMPLATE * 8 + CLIENT * 4


def test_to_a_template_it_is_a_str() -> None:
    assert type(written_by(TEMPLATE, "x")).__name__ == "str"
    assert isinstance(written_by(TEMPLATE, "x"), str)
    assert {"x": 1}[written_by(TEMPLATE, "x")] == 1
