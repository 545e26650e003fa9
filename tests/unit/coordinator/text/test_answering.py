"""From tokens to events: control tokens are read and never shown, stop strings end the content alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shardnet.coordinator.text.answering import ChatStream, PlainStream
from shardnet.coordinator.text.calls.answer import AnswerParser
from tests.support.written_calls import FORMATS, PARIS, TOOLS, WRITTEN, Found, put_together

CONTROL = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>")


def stream(pieces: Sequence[bytes], stops: Sequence[str] = (), *, one_call: bool = False) -> tuple[Found, bool]:
    """Returns: what comes of tokens that spell these; `CONTROL` are control tokens. And whether the answer was ended."""
    texts = [one.decode(errors="replace") for one in pieces]
    made = ChatStream(
        lambda token: b"" if texts[token] in CONTROL else pieces[token],
        lambda token: texts[token] if texts[token] in CONTROL else "",
        AnswerParser(FORMATS["hermes"], TOOLS),
        stops,
        one_call=one_call,
    )
    events = []
    for token in range(len(pieces)):
        events += made.push(token)
    return put_together([*events, *made.flush()]), made.stopped


def split(text: str) -> list[bytes]:
    pieces: list[bytes] = []
    while text:
        mark = next((one for one in CONTROL if text.startswith(one)), text[0])
        pieces += [mark.encode()] if mark in CONTROL else [bytes([one]) for one in mark.encode()]
        text = text[len(mark) :]
    return pieces


def test_calls_and_reasoning_between_control_tokens_are_found() -> None:
    found, _ = stream(split(f"<think>\nhm é\n</think>\n\nyes <|im_end|>é {WRITTEN['hermes']}<|im_end|>"))
    assert (found.reasoning, found.content, found.arguments) == ("hm é", "yes é", [PARIS, {}])


def test_stop_strings_end_content_and_do_not_reach_into_reasoning_or_arguments() -> None:
    text = f"<think>STOP</think>one ST two{WRITTEN['hermes'].replace('days', 'STOP')}"
    found, stopped = stream(split(text), ["STOP"])
    assert (found.reasoning, found.content, stopped) == ("STOP", "one ST two", False)
    assert found.done == 2
    found, stopped = stream(split("one STOP two"), ["STOP"])
    assert (found.content, stopped) == ("one ", True)


def test_text_that_a_stop_string_held_back_comes_before_a_call() -> None:
    found, _ = stream(split(f"one ST{WRITTEN['hermes']}"), ["STOP"])
    assert (found.content, found.done) == ("one ST", 2)


@pytest.mark.parametrize("one_call", [False, True])
def test_an_answer_of_one_call_ends_with_it(one_call: bool) -> None:
    found, stopped = stream(split(WRITTEN["hermes"] + " more"), one_call=one_call)
    assert (found.done, stopped) == ((1, True) if one_call else (2, False))
    assert found.content == ("" if one_call else "more")


def test_a_character_that_a_control_token_cuts_is_replaced() -> None:
    assert stream([b"\xc3", b"<|im_end|>", b"a"])[0].content == "\ufffda"


def test_a_plain_stream_gives_text_alone() -> None:
    plain = PlainStream(lambda token: b"<think>a STOP"[token : token + 1], ["STOP"])
    events = [event for token in range(13) for event in plain.push(token)]
    assert put_together([*events, *plain.flush()]).content == "<think>a "
    assert plain.stopped
