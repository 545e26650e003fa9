"""Wherever the borders between tokens fall, also in the middle of a character, a client gets what it would get of the text in one piece."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardnet.coordinator.api.messages import delta_of, message_of
from shardnet.coordinator.text.answering import AnswerStream, ChatStream, PlainStream
from shardnet.coordinator.text.calls.answer import AnswerFormat, AnswerParser, Thinking
from shardnet.coordinator.text.calls.events import Event
from shardnet.coordinator.text.calls.known import KNOWN, THINKING
from tests.support.written_calls import BEFORE, FORMATS, PARIS, TOOLS, WRITTEN

EXAMPLES = settings(max_examples=20)
PLAIN = AnswerFormat("plain")
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")
MARKS = (
    {mark for one in KNOWN for pair in one.calls.marks.items() for mark in pair if mark}
    | {mark for pair in THINKING for mark in pair}
    | {*HARMONY}
) - {"```"}
CONTROL = re.compile("(" + "|".join(map(re.escape, sorted(MARKS, key=len, reverse=True))) + ")")
SEVERAL_BYTES = ("é", "ö", "漢", "\u2581", "😀", "🇫🇷", "e\u0301", "\ufeff")
TEXTS = st.lists(st.sampled_from([*SEVERAL_BYTES, "a", "b", "ab", " ", "\n", "STOP", "<", "<th"]), max_size=12).map(
    "".join
)
STOPS = st.lists(st.text("abé漢😀 \n<STOP", min_size=1, max_size=4), max_size=4)
FEW = "aé "
"""So few letters that stop strings overlap each other and begin anew within themselves."""
PLACES = st.lists(st.integers(0, 10_000), max_size=12)


@dataclass(frozen=True)
class Token:
    """Bytes, or how a control token is written."""

    piece: bytes
    control: str = ""


def tokens_of(text: str, places: Sequence[int] | None, *, control: bool = False) -> list[Token]:
    """Returns: the text cut behind these bytes (None: behind each), or at control tokens too, which stay whole."""
    made = []
    for part in CONTROL.split(text) if control else [text]:
        if control and part in MARKS:
            made.append(Token(b"", part))
            continue
        raw = part.encode()
        edges = (
            range(len(raw) + 1) if places is None else sorted({0, len(raw), *(at % (len(raw) + 1) for at in places)})
        )
        made += [Token(raw[first:last]) for first, last in pairwise(edges)]
    return made


def answered(stream: Any, tokens: Sequence[Token]) -> list[list[Event]]:
    """Returns: the events of each token, and of the end."""
    made = stream(lambda token: tokens[token].piece, lambda token: tokens[token].control)
    events = []
    for token in range(len(tokens)):
        events.append(made.push(token))
        if made.stopped:
            break
    return [*events, made.flush()]


def chat(format: AnswerFormat, stops: Sequence[str] = (), *, thinks: bool = False, tools: Any = TOOLS) -> Any:
    def make(piece: Any, control_text: Any) -> AnswerStream:
        return ChatStream(piece, control_text, AnswerParser(format, tools, thinks=thinks), stops)

    return make


def plain(stops: Sequence[str]) -> Any:
    return lambda piece, _control_text: PlainStream(piece, stops)


def collected(events: Sequence[Sequence[Event]]) -> dict[str, Any]:
    """Returns: a message put together from its deltas, as a client does; no delta shows half a character."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for some in events:
        delta = delta_of(some)
        for key in ("content", "reasoning_content"):
            message[key] += delta.get(key, "")
            assert "\ufffd" not in delta.get(key, "")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({key: one for key, one in call.items() if key not in ("index", "id")})
                continue
            message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return message


def whole_message(events: Sequence[Sequence[Event]]) -> dict[str, Any]:
    """Returns: the message of an answer that is not streamed, in the same shape."""
    message = message_of([event for some in events for event in some])
    calls = [{key: one for key, one in call.items() if key != "id"} for call in message.get("tool_calls", ())]
    reasoning = message.get("reasoning_content", "")
    return {"content": message["content"] or "", "reasoning_content": reasoning, "tool_calls": calls}


def up_to_stop(text: str, stops: Sequence[str]) -> str:
    """Returns: what stands before the stop string that is whole first; of several that end together the longest."""
    for end in range(len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)]
    return text


@settings(max_examples=200)
@given(text=TEXTS, stops=STOPS, places=PLACES)
def test_nothing_before_a_stop_string_is_lost_and_nothing_behind_it_leaks(
    text: str, stops: list[str], places: list[int]
) -> None:
    wanted = up_to_stop(text, stops)
    for cut in ([], places, None):
        assert collected(answered(plain(stops), tokens_of(text, cut)))["content"] == wanted
        # A chat's answer begins with its first letter, which may be one of a stop string.
        shown = collected(answered(chat(PLAIN, stops), tokens_of("." + text, cut)))["content"]
        assert shown == up_to_stop("." + text, stops)


@settings(max_examples=200)
@given(text=st.text(FEW, max_size=12), stops=st.lists(st.text(FEW, min_size=1, max_size=5), max_size=4), places=PLACES)
def test_of_stop_strings_that_overlap_the_one_that_is_whole_first_counts(
    text: str, stops: list[str], places: list[int]
) -> None:
    for cut in ([], places, None):
        assert collected(answered(plain(stops), tokens_of(text, cut)))["content"] == up_to_stop(text, stops)


@EXAMPLES
@given(data=st.data())
def test_stop_strings_end_the_content_between_reasoning_and_calls_in_the_same_place(data: Any) -> None:
    before, behind, stops = data.draw(TEXTS), data.draw(TEXTS), data.draw(STOPS)
    text = f"<think>\n{before}STOP</think>\n.{before}STOP{WRITTEN['hermes']}.{behind}"
    for control in (False, True):
        whole = answered(chat(FORMATS["hermes"], stops), tokens_of(text, [], control=control))
        for cut in (data.draw(PLACES), None):
            tokens = tokens_of(text, cut, control=control)
            assert collected(answered(chat(FORMATS["hermes"], stops), tokens)) == whole_message(whole)


@EXAMPLES
@given(text=TEXTS, places=PLACES)
def test_no_delta_shows_half_a_character_and_together_they_are_the_text(text: str, places: list[int]) -> None:
    for cut in (places, None):
        assert collected(answered(plain(()), tokens_of(text, cut)))["content"] == text
        assert collected(answered(chat(PLAIN), tokens_of("." + text, cut)))["content"] == "." + text


@EXAMPLES
@given(
    raw=st.lists(st.sampled_from([b"a", "é".encode(), "😀".encode(), b"\xc3", b"\xf0\x9f", b"\x98", b"\xff"])).map(
        b"".join
    )
)
def test_bytes_that_are_no_text_are_shown_alike_however_they_are_cut(raw: bytes) -> None:
    tokens = [Token(bytes([one])) for one in raw]
    events = answered(plain(()), tokens)
    shown = "".join(delta_of(some).get("content", "") for some in events)
    assert shown == raw.decode(errors="replace")


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_are_the_same_with_a_border_behind_every_byte(name: str) -> None:
    text = BEFORE.get(name, "") + WRITTEN[name]
    for control in (False, True):
        if control and name in ("llama", "generic"):
            continue
        message = collected(answered(chat(FORMATS[name]), tokens_of(text, None, control=control)))
        assert message == whole_message(answered(chat(FORMATS[name]), tokens_of(text, [], control=control)))
        assert PARIS["tags"][1] in message["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize("name", WRITTEN)
@EXAMPLES
@given(letters=st.text(SEVERAL_BYTES[0] + "漢😀x ", min_size=1, max_size=4), places=PLACES, control=st.booleans())
def test_calls_of_every_format_and_their_arguments_do_not_depend_on_borders(
    name: str, letters: str, places: list[int], control: bool
) -> None:
    text = (BEFORE.get(name, "") + WRITTEN[name]).replace("é", letters)
    whole = whole_message(answered(chat(FORMATS[name]), tokens_of(text, [], control=control)))
    assert collected(answered(chat(FORMATS[name]), tokens_of(text, places, control=control))) == whole


@pytest.mark.parametrize("name", WRITTEN)
@EXAMPLES
@given(data=st.data())
def test_any_mixture_of_a_formats_own_words_is_read_alike_wherever_borders_are(name: str, data: Any) -> None:
    own = [piece for piece in re.split(r"(\W)", WRITTEN[name]) if piece]
    words = st.sampled_from(
        [*sorted(MARKS & set(CONTROL.findall(WRITTEN[name]))), *own, WRITTEN[name], "<think>", "漢"]
    )
    text = "".join(data.draw(st.lists(words, max_size=14)))
    stops, places, control = data.draw(STOPS), data.draw(PLACES), data.draw(st.booleans())
    whole = answered(chat(FORMATS[name], stops), tokens_of(text, [], control=control))
    for cut in (places, None):
        events = answered(chat(FORMATS[name], stops), tokens_of(text, cut, control=control))
        assert collected(events) == collected(whole)
        assert whole_message(events) == whole_message(whole)


@pytest.mark.parametrize("pair", THINKING, ids=lambda pair: pair[0])
@EXAMPLES
@given(data=st.data())
def test_reasoning_and_content_are_parted_in_the_same_place_wherever_borders_are(
    pair: tuple[str, str], data: Any
) -> None:
    reasoning, content, thinks = data.draw(TEXTS), data.draw(TEXTS), data.draw(st.booleans())
    text = ("" if thinks else pair[0]) + reasoning + pair[1] + content
    format = AnswerFormat("f", FORMATS["hermes"].calls, Thinking((pair,)))
    for control in (False, True):
        whole = answered(chat(format, thinks=thinks), tokens_of(text, [], control=control))
        message = whole_message(whole)
        assert message["reasoning_content"] == reasoning.strip()
        assert message["content"] == content.lstrip()
        for cut in (data.draw(PLACES), None):
            tokens = tokens_of(text, cut, control=control)
            assert collected(answered(chat(format, thinks=thinks), tokens)) == message


@EXAMPLES
@given(reasoning=TEXTS, content=TEXTS, places=PLACES)
def test_channels_of_harmony_are_parted_in_the_same_place_wherever_borders_are(
    reasoning: str, content: str, places: list[int]
) -> None:
    text = f"<|channel|>analysis<|message|>{reasoning}<|end|><|start|>assistant<|channel|>final<|message|>.{content}"
    for control in (False, True):
        for cut in ([], places, None):
            message = collected(answered(chat(FORMATS["harmony"]), tokens_of(text, cut, control=control)))
            assert message["reasoning_content"] == reasoning.strip()
            assert message["content"] == ("." + content)
