"""Keeping the place in a text that is repeated with changes: where it goes on, and what was changed before."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from shardnet.coordinator.requests.copying import LONGEST_EDIT, Copying

TEXT = list(range(100, 160))


def after(text: Sequence[int], answer: Sequence[int], streak: int = 2) -> tuple[Copying, list[int]]:
    """Returns: the state behind an answer that goes along the text from its beginning, and all tokens."""
    tokens = [*text, *answer]
    copying = Copying()
    copying.begin(streak, streak)
    for position in range(len(text) + streak, len(tokens)):
        copying.take(tokens, position)
    return copying, tokens


def test_a_text_that_is_repeated_goes_on() -> None:
    copying, tokens = after(TEXT, TEXT[:10])
    assert copying.guess(tokens, 4) == TEXT[10:14]
    assert copying.streak == 10


def test_behind_a_token_that_was_replaced_the_text_is_taken_to_go_on_at_once() -> None:
    copying, tokens = after(TEXT, [*TEXT[:10], 7])
    assert copying.guess(tokens, 3) == TEXT[11:14]
    assert copying.streak == 0


def test_behind_tokens_that_were_put_in_or_left_out_the_text_goes_on_where_it_is_met_again() -> None:
    copying, tokens = after(TEXT, [*TEXT[:10], 7, 8, 9, TEXT[10]])
    assert copying.guess(tokens, 2) == TEXT[11:13]
    copying, tokens = after(TEXT, [*TEXT[:10], TEXT[14]])
    assert copying.guess(tokens, 2) == TEXT[15:17]


def test_what_was_replaced_once_will_be_replaced_again() -> None:
    text = [*TEXT[:10], 1, *TEXT[10:20], 1, *TEXT[20:]]
    copying, tokens = after(text, [*TEXT[:10], 7, 8, *TEXT[10:18]])
    assert copying.guess(tokens, 6) == [*TEXT[18:20], 7, 8, *TEXT[20:22]]


def test_what_was_put_in_once_will_be_put_in_again() -> None:
    text = [*TEXT[:10], 1, 2, *TEXT[10:20], 1, 2, *TEXT[20:]]
    copying, tokens = after(text, [*TEXT[:10], 1, 7, 2, *TEXT[10:18]])
    assert copying.guess(tokens, 6) == [*TEXT[18:20], 1, 7, 2, TEXT[20]]


def test_an_edit_that_is_not_made_again_is_forgotten_and_one_made_otherwise_is_learnt_anew() -> None:
    text = [*TEXT[:10], 1, *TEXT[10:20], 1, *TEXT[20:30], 1, *TEXT[30:]]
    answer = [*TEXT[:10], 7, *TEXT[10:20]]
    copying, tokens = after(text, [*answer, 1, *TEXT[20:28]])
    assert copying.guess(tokens, 4) == [*TEXT[28:30], 1, TEXT[30]]
    copying, tokens = after(text, [*answer, 8, *TEXT[20:28]])
    assert copying.guess(tokens, 4) == [*TEXT[28:30], 8, TEXT[30]]


def test_a_place_is_lost_when_nothing_of_the_text_comes_for_long() -> None:
    copying, tokens = after(TEXT, [*TEXT[:10], *[7] * (LONGEST_EDIT + 1)])
    assert not copying.has_place
    assert copying.guess(tokens, 2) == []


def test_a_text_that_runs_into_itself_goes_on_in_circles() -> None:
    copying, tokens = after([1, 2, 3], [1, 2, 3, 1])
    copying.begin(4, 4)
    assert copying.guess(tokens, 7) == [2, 3, 1, 2, 3, 1, 2]


@given(
    st.lists(st.integers(0, 3), min_size=4, max_size=30), st.lists(st.integers(0, 4), max_size=80), st.integers(1, 40)
)
def test_whatever_comes_as_many_tokens_are_guessed_as_were_asked_for_or_none(
    text: list[int], answer: list[int], count: int
) -> None:
    for end in range(2, len(answer) + 1):
        copying, tokens = after(text, answer[:end])
        assert len(copying.guess(tokens, count)) in (0, count)
