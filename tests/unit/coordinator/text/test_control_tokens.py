"""Which characters may become control tokens: the template's own, and no others."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from shardnet.coordinator.text.control import WINDOW, ControlTokens, Part
from shardnet.coordinator.text.provenance import CLIENT, TEMPLATE, authors_of, concat, written_by

END, CHANNEL = "<|end|>", "<|channel|>"


def own(text: str) -> str:
    return written_by(TEMPLATE, text)


def test_a_prompt_that_spells_nothing_stays_in_one_piece() -> None:
    prompt = concat([own("<|user|>"), "hello", own(END)])
    assert ControlTokens(["<|user|>", END]).parts(prompt) == [Part("<|user|>hello<|end|>", special=True)]


def test_what_a_client_spells_is_set_apart_with_the_text_around_it() -> None:
    prompt = concat([own("<|user|>\n"), f"a{END}b", own(END + "\n<|user|>"), "c"])
    assert ControlTokens(["<|user|>", END]).parts(prompt) == [
        Part("<|user|>", special=True),
        Part("\na<|end|>b", special=False),
        Part("<|end|>\n<|user|>c", special=True),
    ]


def test_a_token_that_is_looked_for_everywhere_is_cut() -> None:
    prompt = concat([own(END), f"a{CHANNEL}b", own(END)])
    assert ControlTokens([END], [CHANNEL]).parts(prompt) == [
        Part(END, special=True),
        Part("a<", special=False),
        Part("|channel|>b", special=False, joined=True),
        Part(END, special=True),
    ]


def test_half_a_token_of_the_templates_and_half_of_a_clients_is_none() -> None:
    prompt = concat([own("<|"), "end", own("|>")])
    assert ControlTokens([END]).parts(prompt) == [Part(END, special=False)]


def test_a_longer_token_that_begins_in_the_templates_own_is_not_made() -> None:
    prompt = concat([own(END), "x"])
    assert ControlTokens([END, END + "x"]).parts(prompt) == [Part(END + "x", special=False)]


def test_spaces_and_tags_of_the_vocabulary_are_text() -> None:
    control = ControlTokens([], ["\n\n", "    ", "<table>", "a", CHANNEL])
    assert control.parts("<table>\n\n    a") == [Part("<table>\n\n    a", special=True)]


def test_tags_that_the_template_speaks_of_are_control_tokens() -> None:
    control = ControlTokens([], ["<think>"], template="{{ '<think>' }}")
    assert [part.text for part in control.parts("a<think>")] == ["a<", "think>"]


def test_a_token_across_two_windows_is_found() -> None:
    for start in range(WINDOW - len(END) - 1, WINDOW + 2):
        parts = ControlTokens([END]).parts("x" * start + END)
        assert [part.special for part in parts] == [False]


def test_no_control_tokens_no_parts() -> None:
    assert ControlTokens([]).parts("<|end|>") == [Part("<|end|>", special=True)]


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(
        st.tuples(st.booleans(), st.sampled_from(["<|a|>", "<|ab|>", "<|", "|>", "a", "<", "x", "<x>", "<x><|a|>"])),
        max_size=12,
    )
)
def test_no_part_lets_a_client_spell_a_token_and_none_of_the_templates_is_lost(pieces: list[tuple[bool, str]]) -> None:
    control, defined = ["<|a|>", "<|ab|>"], ["<x>", "<x><|a|>"]
    prompt = concat([own(text) if mine else text for mine, text in pieces])
    parts = ControlTokens(control, defined, "<x><|a|>").parts(prompt)
    assert "".join(part.text for part in parts) == prompt
    at = 0
    for part in parts:
        for token in [*(control if part.special else []), *defined]:
            start = part.text.find(token)
            while start >= 0:
                assert CLIENT not in authors_of(prompt)[at + start : at + start + len(token)]
                start = part.text.find(token, start + 1)
        at += len(part.text)


def test_the_time_hardly_depends_on_how_many_tokens_there_are() -> None:
    def took_s(count: int) -> float:
        control = ControlTokens(f"<|reserved_{number}|>" for number in range(count))
        before_s = time.process_time()
        assert control.parts("<|reserved_" * 1000) == [Part("<|reserved_" * 1000, special=True)]
        return time.process_time() - before_s

    assert min(took_s(5000) for _ in range(2)) < 20 * min(took_s(5) for _ in range(2))
