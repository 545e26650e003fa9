"""The event of a token is the same, however it is written."""

from __future__ import annotations

from typing import Any, cast

import pytest

from shardnet.coordinator.api.service import Answering
from shardnet.coordinator.api.wording import ChatWording, CompletionWording, Wording, to_event
from shardnet.coordinator.requests.generation_spec import Emitted
from shardnet.coordinator.requests.running import Piece
from shardnet.coordinator.text.calls.events import CallArguments, CallBegun, CallBroken, Content, Event, Reasoning

BASE = {"id": "x", "created": 1, "model": 'a "model"', "system_fingerprint": "fp"}
NOBODY = cast(Answering, None)
EVENTS: list[tuple[Event, ...]] = [
    (Content("a"),),
    (Content('"quoted" \\ \n\t\x00\u2028 é 😀'), Content(" more")),
    (Reasoning("hm"),),
    (Reasoning("hm"), Content("so")),
    (Content("let me see"), CallBegun(0, "id", "f"), CallArguments(0, '{"a"')),
    (CallBroken(0, "no call"),),
    (),
]


@pytest.mark.parametrize("kind", [ChatWording, CompletionWording])
@pytest.mark.parametrize("token_ids", [False, True])
@pytest.mark.parametrize("events", EVENTS)
def test_a_part_is_written_as_json_writes_it(kind: type[Wording], token_ids: bool, events: tuple[Event, ...]) -> None:
    piece = Piece(events, (Emitted(7),))
    made: list[Any] = [kind(NOBODY, 2, BASE, logprobs=False, token_ids=token_ids) for _ in range(2)]
    for _ in range(2):
        assert made[0].part_event(piece) == to_event(made[1].part(piece))
