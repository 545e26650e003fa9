"""A message over HTTP: whole, as events in their order, and errors in the API's own shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from shardnet.errors import EngineError
from shardnet.messages import ExecuteTask
from tests.support.agent_apis import kinds, named_events
from tests.support.scripted_swarm import CALLING, TEXT, World, says

TOOL = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASKED = {"role": "user", "content": "hi"}
BLOCK = ["content_block_start", "content_block_delta", "content_block_stop"]
BEGIN, END = ["message_start", "ping"], ["message_delta", "message_stop"]


async def ask(world: World, **more: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [ASKED], "temperature": 0, "max_tokens": 400} | more
    return await world.client.post("/v1/messages", json=body)


def put_together(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns: the blocks as a client has them at the end; a call's input as its JSON text."""
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            for key in ("text", "thinking", "signature"):
                if key in delta:
                    assert delta["type"] == f"{key}_delta"
                    block[key] += delta[key]
            if "partial_json" in delta:
                block["input"] = (block["input"] or "") + delta["partial_json"]
    return blocks


def without_id(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "id"}


@pytest.fixture
def make(make_world: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **sections: make_world(prefixes={"enabled": False}, **sections)


async def test_a_text_is_whole_or_comes_as_events_that_say_the_same(make: Callable[..., Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        n_tokens = says(world, TEXT)
        whole = (await ask(world)).json()
        events = named_events(await ask(world, stream=True))
        assert kinds(events) == [*BEGIN, *BLOCK, *END]
        assert put_together(events) == whole["content"] == [{"type": "text", "text": TEXT}]
        begun, ended = events[0]["message"], events[-2]
        assert (begun["content"], begun["stop_reason"], begun["model"]) == ([], None, "tiny")
        assert ended["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
        assert ended["usage"] == whole["usage"]
        assert without_id(
            begun | {"content": whole["content"], "usage": whole["usage"]} | ended["delta"]
        ) == without_id(whole)
        assert (whole["type"], whole["role"], whole["usage"]["output_tokens"]) == ("message", "assistant", n_tokens)


@pytest.mark.parametrize(
    ("more", "reason", "sequence"),
    [
        ({"max_tokens": 5}, "max_tokens", None),
        ({"stop_sequences": ["fox", "brown"]}, "stop_sequence", "brown"),
        ({"max_tokens": -1, "text": "x" * 3000}, "model_context_window_exceeded", None),
    ],
)
async def test_why_it_ended_is_said(
    make: Callable[..., Any], more: dict[str, Any], reason: str, sequence: str | None
) -> None:
    async with make(sequences={"n_ctx": 512}) as world, world.node("a", 0, 1, 2):
        await world.ready()
        says(world, more.pop("text", TEXT))
        whole = (await ask(world, **more)).json()
        ended = named_events(await ask(world, **more, stream=True))[-2]["delta"]
        for one in (whole, ended):
            assert (one["stop_reason"], one["stop_sequence"]) == (reason, sequence)


async def test_calls_are_blocks_of_their_own_whole_and_streamed(make: Callable[..., Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        says(world, CALLING)
        whole = (await ask(world, tools=[TOOL])).json()
        events = named_events(await ask(world, tools=[TOOL], stream=True))
        assert kinds(events) == [*BEGIN, *BLOCK, *BLOCK, *BLOCK, *END]
        text, first, second = whole["content"]
        assert (text["text"], first["input"], second["input"]) == ("I look.", {"city": "Rom"}, {})
        assert (first["name"], whole["stop_reason"]) == ("weather", "tool_use")
        assert first["id"] != second["id"]
        streamed = put_together(events)
        assert [one.get("input") for one in streamed] == [None, '{"city": "Rom"}', "{}"]
        assert events[-2]["delta"]["stop_reason"] == "tool_use"
        deltas = [one for one in events if one["type"] == "content_block_delta" and one["index"] == 1]
        assert len(deltas) > 3


async def test_a_message_sent_back_with_results_goes_on(make: Callable[..., Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        says(world, CALLING)
        content = (await ask(world, tools=[TOOL])).json()["content"]
        results = [
            {"type": "tool_result", "tool_use_id": one["id"], "content": "7 C"}
            for one in content
            if one["type"] == "tool_use"
        ]
        says(world, "It is 7 C.")
        conversation = [ASKED, {"role": "assistant", "content": content}, {"role": "user", "content": results}]
        answer = (await ask(world, tools=[TOOL], messages=conversation)).json()
        assert (answer["content"], answer["stop_reason"]) == ([{"type": "text", "text": "It is 7 C."}], "end_turn")


async def test_a_call_that_broke_off_is_a_text_and_never_a_block_that_somebody_runs(make: Callable[..., Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        text = CALLING[CALLING.index("<") : CALLING.index("Rom")]
        says(world, text)
        whole = (await ask(world, tools=[TOOL])).json()
        events = named_events(await ask(world, tools=[TOOL], stream=True))
        assert put_together(events) == whole["content"] == [{"type": "text", "text": text}]
        assert whole["stop_reason"] == "end_turn"


async def test_reasoning_is_a_block_of_thinking_before_the_text(make: Callable[..., Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        says(world, "<think>\nHm, hm.\n</think>\n\nYes.")
        whole = (await ask(world)).json()
        assert whole["content"] == [
            {"type": "thinking", "thinking": "Hm, hm.", "signature": "unsigned"},
            {"type": "text", "text": "Yes."},
        ]
        assert put_together(named_events(await ask(world, stream=True))) == whole["content"]


async def test_an_answer_goes_on_where_the_last_message_ends(make: Callable[..., Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2) as node:
        await world.ready()
        begun = [ASKED, {"role": "assistant", "content": "The sky"}]
        n_begun = (await ask(world, messages=begun, max_tokens=1)).json()["usage"]["input_tokens"]
        n_asked = (await ask(world, max_tokens=1)).json()["usage"]["input_tokens"]
        assert n_asked < n_begun < n_asked + 8  # nothing closes the turn
        assert node.tasks
        empty = await ask(world, messages=[ASKED, {"role": "assistant", "content": ""}])
        assert empty.json()["error"]["message"].startswith("messages.1: the last message must be")


async def test_a_stream_that_cannot_go_on_ends_with_an_error(make: Callable[..., Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2) as node:
        await world.ready()
        says(world, TEXT)

        def refuse(_task: ExecuteTask) -> bool:
            if len(node.tasks) > 10:
                raise EngineError("the engine does not go on")
            return True

        node.on_task = refuse
        events = named_events(await ask(world, stream=True))
        assert kinds(events)[-2:] == ["content_block_delta", "error"]
        assert events[-1]["error"]["type"] == "api_error"
        assert "the engine does not go on" in events[-1]["error"]["message"]


async def test_tokens_are_counted_as_they_would_be_used(make: Callable[..., Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        body = {"model": "tiny", "messages": [ASKED], "system": "be terse", "tools": [TOOL]}
        counted = (await world.client.post("/v1/messages/count_tokens", json=body)).json()
        used = (await ask(world, **body, max_tokens=1)).json()["usage"]["input_tokens"]
        assert counted == {"input_tokens": used}


async def test_errors_have_the_apis_own_shape_on_its_paths_alone(make: Callable[..., Any]) -> None:
    async with make(api={"key": "s3cret"}) as world:
        post, key = world.client.post, {"x-api-key": "s3cret"}
        body = {"model": "tiny", "messages": [ASKED], "max_tokens": 9}
        for response, status, kind in (
            (await post("/v1/messages", json=body), 401, "authentication_error"),
            (await post("/v1/messages", json=body, headers={"x-api-key": "other"}), 401, "authentication_error"),
            (await post("/v1/messages", json=body | {"max_tokens": 0}, headers=key), 400, "invalid_request_error"),
            (await post("/v1/messages", json=body | {"model": "x"}, headers=key), 404, "not_found_error"),
            (await post("/v1/messages", json=body, headers=key), 503, "overloaded_error"),
            (await post("/v1/messages", content=b"{", headers=key), 400, "invalid_request_error"),
            (await post("/v1/messages/batches", json=body, headers=key), 404, "not_found_error"),
            (await world.client.get("/v1/messages", headers=key), 405, "invalid_request_error"),
        ):
            told = response.json()
            assert (response.status_code, told["type"], told["error"]["type"]) == (status, "error", kind)
            assert told["error"]["message"]
            assert (status == 503) == ("retry-after" in response.headers)
        threaded = (await post("/v1/messages", json=body | {"thread": {"type": "create"}}, headers=key)).json()
        assert threaded["error"]["details"] == {"error_code": "thread_unsupported_request"}
        bearer = await post("/v1/messages", json=body, headers={"Authorization": "Bearer s3cret", "x-api-key": "other"})
        assert bearer.status_code == 503
        other = (await post("/v1/messagesx", json=body, headers=key)).json()
        assert "type" not in other
