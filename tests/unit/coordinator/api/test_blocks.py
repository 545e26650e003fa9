"""An answer as blocks: each begins, grows and ends in turn, and nothing that came is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardnet.coordinator.api.blocks import Blocks, Closed, Grew, Opened, Step
from shardnet.coordinator.text.calls.events import (
    CallArguments,
    CallBegun,
    CallBroken,
    CallDone,
    Content,
    Event,
    Reasoning,
)

CALL: list[Event] = [CallBegun(0, "id", "f"), CallArguments(0, '{"a"'), CallArguments(0, ": 1}"), CallDone(0)]
BROKEN: list[Event] = [CallBegun(0, "id", "f"), CallArguments(0, '{"a"'), CallBroken(0, '<call>{"a"')]


def told(events: list[Event], *, holds_calls: bool = False) -> tuple[Blocks, list[Step]]:
    blocks = Blocks(holds_calls=holds_calls)
    return blocks, [*[step for event in events for step in blocks.take([event])], *blocks.end()]


def short(steps: list[Step]) -> list[str]:
    names = {Opened: "opened", Grew: "grew", Closed: "closed"}
    return [
        f"{names[type(step)]} {step.block.kind}" + (f" {step.text}" if isinstance(step, Grew) else "") for step in steps
    ]


def test_each_kind_is_a_block_of_its_own_in_the_order_in_which_it_came() -> None:
    blocks, steps = told([Reasoning("hm"), Content("a"), Content("b"), *CALL, Content("c")])
    assert [(one.index, one.kind, one.text) for one in blocks.all] == [
        (0, "reasoning", "hm"),
        (1, "text", "ab"),
        (2, "call", '{"a": 1}'),
        (3, "text", "c"),
    ]
    assert short(steps)[:6] == [
        "opened reasoning",
        "grew reasoning hm",
        "closed reasoning",
        "opened text",
        "grew text a",
        "grew text b",
    ]
    assert all(one.is_whole for one in blocks.all)


def test_a_call_is_told_as_it_comes_or_when_it_is_whole() -> None:
    for holds, at_once in ((False, ["opened call", 'grew call {"a"']), (True, [])):
        blocks = Blocks(holds_calls=holds)
        assert short(blocks.take(CALL[:2])) == at_once
        rest = short(blocks.take(CALL[2:]))
        assert rest[-2:] == ["grew call : 1}", "closed call"]


def test_a_call_that_breaks_off_is_text_alone_where_calls_are_held_back() -> None:
    blocks, _ = told([Content("I look. "), *BROKEN, Content("!")], holds_calls=True)
    assert [(one.kind, one.text) for one in blocks.all] == [("text", 'I look. <call>{"a"!')]


def test_a_call_that_breaks_off_is_closed_as_not_whole_and_its_text_follows() -> None:
    blocks, _ = told(BROKEN)
    assert [(one.kind, one.text, one.is_whole) for one in blocks.all] == [
        ("call", '{"a"', False),
        ("text", '<call>{"a"', True),
    ]
    cut, _ = told(CALL[:2])
    assert not cut.all[0].is_whole


def test_an_answer_that_says_nothing_is_an_empty_text() -> None:
    assert short(told([])[1]) == ["opened text", "closed text"]
    assert short(told([Content("")])[1]) == ["opened text", "closed text"]


pieces = st.lists(
    st.one_of(
        st.builds(Content, st.text(max_size=3)),
        st.builds(Reasoning, st.text(max_size=3)),
        st.just("call"),
        st.just("broken"),
    ),
    max_size=12,
)


@given(pieces, st.booleans())
def test_one_block_is_open_at_a_time_and_all_are_closed_at_the_end(
    given_pieces: list[Content | Reasoning | str], holds: bool
) -> None:
    events: list[Event] = []
    for one in given_pieces:
        events += CALL if one == "call" else BROKEN if one == "broken" else [one]  # type: ignore[list-item]
    blocks, steps = told(events, holds_calls=holds)
    is_open: int | None = None
    for step in steps:
        match step:
            case Opened(block):
                assert is_open is None
                is_open = block.index
            case Grew(block, _):
                assert is_open == block.index
            case Closed(block):
                assert is_open == block.index
                is_open = None
    assert is_open is None
    text = "".join(event.text for event in events if isinstance(event, Content | CallBroken))
    assert "".join(one.text for one in blocks.all if one.kind == "text") == text
    assert [one.index for one in blocks.all] == list(range(len(blocks.all)))
