"""Reasoning is apart from content, whoever opened it, and a quoted tag is a text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardnet.coordinator.text.calls.answer import AnswerFormat, AnswerParser, Thinking
from shardnet.coordinator.text.calls.events import Content
from shardnet.coordinator.text.calls.known import THINKING
from tests.support.written_calls import FORMATS, PARIS, WRITTEN, read

CALLS = WRITTEN["hermes"]


@pytest.mark.parametrize("pair", THINKING, ids=lambda pair: pair[0])
@pytest.mark.parametrize("opened_by_prompt", [False, True])
def test_reasoning_is_found_however_it_is_cut(pair: tuple[str, str], opened_by_prompt: bool) -> None:
    text = ("" if opened_by_prompt else "\n" + pair[0]) + f"\nFirst,\n\n < then.\n{pair[1]}\n\nThe answer\n is 4.\n"
    format = AnswerFormat("f", FORMATS["hermes"].calls, Thinking((pair,)))
    for at in range(len(text)):
        found = read(format, [text[:at], text[at:]], thinks=opened_by_prompt)
        assert (found.reasoning, found.content) == ("First,\n\n < then.", "The answer\n is 4.\n")


@settings(max_examples=50, deadline=None)
@given(st.text("<>/think ab\n", max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_any_text_is_the_same_however_it_is_cut(text: str, places: list[int]) -> None:
    edges = [0, *sorted({min(place, len(text)) for place in places}), len(text)]
    pieces = [text[first:last] for first, last in itertools.pairwise(edges)]
    for thinks in (False, True):
        assert read(FORMATS["hermes"], pieces, thinks=thinks) == read(FORMATS["hermes"], [text], thinks=thinks)


def test_calls_behind_reasoning_are_found_and_those_within_are_reasoning() -> None:
    found = read(FORMATS["hermes"], list(f"<think>I could {CALLS}</think>\n{CALLS}"))
    assert found.arguments == [PARIS, {}]
    assert (found.content, found.reasoning) == ("", f"I could {CALLS}")


def test_a_tag_in_the_middle_of_an_answer_is_a_text() -> None:
    text = "Models write <think> and </think> there."
    found = read(FORMATS["hermes"], list(text))
    assert (found.content, found.reasoning) == (text, "")
    control = read(FORMATS["hermes"], ["So: ", "<think>", "hm", "</think>", " yes"], control=["<think>", "</think>"])
    assert (control.content, control.reasoning) == ("So:yes", "hm")


def test_reasoning_that_does_not_end_is_all_reasoning() -> None:
    found = read(FORMATS["hermes"], list("<think>on and on"))
    assert (found.reasoning, found.content) == ("on and on", "")


def test_channels_of_harmony() -> None:
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Four <|x|>.<|return|>"
    for at in range(len(text)):
        found = read(FORMATS["harmony"], [text[:at], text[at:]])
        assert (found.reasoning, found.content) == ("Hm.", "Four <|x|>.")
    assert read(FORMATS["harmony"], ["No header."]).content == "No header."
    assert read(FORMATS["harmony"], ["<|channel|>fin"]).content == "<|channel|>fin"


def test_a_prompt_that_opens_reasoning_is_known() -> None:
    thinks = FORMATS["hermes"].thinks_already
    assert thinks("<|im_start|>assistant\n<think>\n")
    assert not thinks("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not thinks("<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n")


def test_white_space_is_told_with_its_own_token_where_no_mark_may_follow_and_else_with_the_next_one() -> None:
    """Else whoever reads along waits for two tokens at the end of each paragraph."""
    format, pieces = FORMATS["generic"], ["One", ".", "\n\n", "\n", "Two", " "]
    plain, offered = AnswerParser(AnswerFormat("f")), AnswerParser(format, {"weather": {}})
    assert [plain.push(piece) for piece in pieces] == [[Content(piece)] for piece in pieces]
    assert plain.end() == []
    told = [offered.push(piece) for piece in pieces]
    assert told == [[Content("One")], [Content(".")], [], [], [Content("\n\n\nTwo")], []]
    assert offered.end() == [Content(" ")]
