"""A response over HTTP: whole, as events in their order, and what ends a stream that cannot go on."""

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
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TEXT_EVENTS = [
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
CALL_EVENTS = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]
BEGIN = ["response.created", "response.in_progress"]


async def respond(world: World, **more: Any) -> httpx.Response:
    body = {"model": "tiny", "input": "hi", "temperature": 0, "max_output_tokens": 400} | more
    return await world.client.post("/v1/responses", json=body)


def events_in(response: httpx.Response) -> list[dict[str, Any]]:
    """Returns: the events, whose numbers are right."""
    found = named_events(response)
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    return found


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    output = [
        {key: value for key, value in item.items() if key not in ("id", "call_id")} for item in response["output"]
    ]
    kept = {key: value for key, value in response.items() if key not in ("id", "created_at", "completed_at")}
    return kept | {"output": output}


@pytest.fixture
def make(make_world: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: make_world(prefixes={"enabled": False})


async def test_a_text_is_whole_or_comes_as_events_that_end_with_the_same(make: Callable[[], Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        n_tokens = says(world, TEXT)
        whole = (await respond(world, metadata={"a": "b"}, instructions="be terse")).json()
        events = events_in(await respond(world, metadata={"a": "b"}, instructions="be terse", stream=True))
        assert kinds(events) == [*BEGIN, *TEXT_EVENTS, "response.completed"]
        assert "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta") == TEXT
        assert without_ids(events[-1]["response"]) == without_ids(whole)
        (item,) = whole["output"]
        assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
        assert item["content"] == [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}]
        assert (whole["object"], whole["status"], whole["error"], whole["store"]) == (
            "response",
            "completed",
            None,
            False,
        )
        assert (whole["metadata"], whole["instructions"], whole["model"]) == ({"a": "b"}, "be terse", "tiny")
        usage = whole["usage"]
        assert (usage["output_tokens"], usage["total_tokens"]) == (n_tokens, n_tokens + usage["input_tokens"])


async def test_what_was_asked_is_said_again(make: Callable[[], Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        format = {"type": "json_schema", "name": "n", "strict": True, "schema": {"type": "object", "properties": {}}}
        asked = {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": False, "reasoning": {"effort": "low"}}
        said = (await respond(world, **asked, text={"format": format}, max_output_tokens=1, top_p=0.5)).json()
        assert asked | {"reasoning": {"effort": "low", "summary": None}} == {key: said[key] for key in asked}
        assert (said["text"], said["top_p"], said["temperature"]) == ({"format": format}, 0.5, 0)


async def test_an_answer_that_was_cut_is_incomplete(make: Callable[[], Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        whole = (await respond(world, max_output_tokens=5)).json()
        events = events_in(await respond(world, max_output_tokens=5, stream=True))
        assert events[-1]["type"] == "response.incomplete"
        for one in (whole, events[-1]["response"]):
            assert (one["status"], one["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
            assert one["output"][0]["status"] == "incomplete"


async def test_what_was_whole_before_the_cut_is_complete(make: Callable[[], Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        n_tokens = says(world, CALLING)
        more = {"tools": [TOOL], "max_output_tokens": n_tokens - 1}
        events = events_in(await respond(world, **more, stream=True))
        done = [one["item"] for one in events if one["type"] == "response.output_item.done"]
        for output in (done, events[-1]["response"]["output"], (await respond(world, **more)).json()["output"]):
            assert [one["status"] for one in output] == ["completed"] * 3
        assert events[-1]["type"] == "response.incomplete"


async def test_calls_are_items_of_their_own_whole_and_streamed(make: Callable[[], Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        says(world, CALLING)
        whole = (await respond(world, tools=[TOOL])).json()
        events = events_in(await respond(world, tools=[TOOL], stream=True))
        assert kinds(events) == [*BEGIN, *TEXT_EVENTS, *CALL_EVENTS, *CALL_EVENTS, "response.completed"]
        assert without_ids(events[-1]["response"]) == without_ids(whole)
        text, first, second = whole["output"]
        assert text["content"][0]["text"] == "I look."
        assert (first["name"], first["arguments"], second["arguments"]) == ("weather", '{"city": "Rom"}', "{}")
        assert first["call_id"] != second["call_id"]
        deltas = [one for one in events if one["type"] == "response.function_call_arguments.delta"]
        assert "".join(one["delta"] for one in deltas if one["output_index"] == 1) == '{"city": "Rom"}'
        assert sum(one["output_index"] == 1 for one in deltas) > 3
        done = [one["item"] for one in events if one["type"] == "response.output_item.done"]
        assert done == events[-1]["response"]["output"]
        added = [one["item"] for one in events if one["type"] == "response.output_item.added"]
        assert [one["id"] for one in added] == [one["id"] for one in done]
        assert [one["call_id"] for one in added[1:]] == [one["call_id"] for one in done[1:]]


async def test_a_response_sent_back_with_results_goes_on(make: Callable[[], Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        says(world, CALLING)
        output = (await respond(world, tools=[TOOL])).json()["output"]
        results = [
            {"type": "function_call_output", "call_id": one["call_id"], "output": "7 C"}
            for one in output
            if one["type"] == "function_call"
        ]
        says(world, "It is 7 C.")
        answer = await respond(world, tools=[TOOL], input=[{"role": "user", "content": "hi"}, *output, *results])
        assert answer.json()["output"][0]["content"][0]["text"] == "It is 7 C."


async def test_a_call_that_broke_off_is_an_incomplete_item_and_nobody_is_told_to_run_it(
    make: Callable[[], Any],
) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        text = CALLING[CALLING.index("<") : CALLING.index("Rom")]
        says(world, text)
        whole = (await respond(world, tools=[TOOL])).json()
        events = events_in(await respond(world, tools=[TOOL], stream=True))
        assert kinds(events) == [*BEGIN, *CALL_EVENTS, *TEXT_EVENTS, "response.completed"]
        done = [one["item"] for one in events if one["type"] == "response.output_item.done"]
        assert [(one["type"], one["status"]) for one in done] == [
            ("function_call", "incomplete"),
            ("message", "completed"),
        ]
        for one in (whole, events[-1]["response"]):
            assert [item["content"][0]["text"] for item in one["output"]] == [text]


async def test_an_answer_that_says_nothing_is_a_message_with_an_empty_text(make: Callable[[], Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        says(world, "")
        events = events_in(await respond(world, stream=True))
        assert kinds(events) == [*BEGIN, *[one for one in TEXT_EVENTS if "delta" not in one], "response.completed"]
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""


async def test_probabilities_of_the_texts_tokens_come_with_its_deltas(make: Callable[[], Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        n_tokens = says(world, TEXT)
        more = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
        whole = (await respond(world, **more)).json()["output"][0]["content"][0]["logprobs"]
        events = events_in(await respond(world, **more, stream=True))
        parts = [one["logprobs"] for one in events if one["type"] == "response.output_text.delta"]
        assert "".join(one["token"] for one in whole) == TEXT
        assert len(whole) == n_tokens - 1
        assert [one for part in parts for one in part] == whole
        assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == whole


async def test_a_stream_that_cannot_go_on_ends_with_an_error_and_response_failed(make: Callable[[], Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2) as node:
        await world.ready()
        says(world, TEXT)

        def refuse(task: ExecuteTask) -> bool:
            if len(node.tasks) > 10:
                raise EngineError("the engine does not go on")
            return True

        node.on_task = refuse
        events = events_in(await respond(world, stream=True))
        assert [one["type"] for one in events[-2:]] == ["error", "response.failed"]
        error, failed = events[-2], events[-1]["response"]
        assert error["message"] == error["error"]["message"] == failed["error"]["message"]
        assert "the engine does not go on" in error["message"]
        assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
        text = "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta")
        assert text
        assert failed["output"][0]["content"][0]["text"] == text
        node.tasks.clear()
        refused = await respond(world)
        assert (refused.status_code, refused.json()["error"]["message"]) == (500, error["message"])


async def test_what_a_chat_refuses_is_refused_with_the_items_place(make: Callable[[], Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        for more, words, param in (
            (
                {"input": [{"role": "user", "content": "hi"}, call]},
                "input.1: the chat template of tiny leaves",
                "input",
            ),
            ({"input": "x" * 5000}, "the prompt is too long: it has ", None),
            ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "text.format: ", "text.format"),
            ({"input": "hi", "store": True}, "store: ", "store"),
            ({"model": "gpt"}, "model 'gpt' is not known here", None),
        ):
            error = (await respond(world, **more)).json()["error"]
            assert error["message"].startswith(words)
            assert error["param"] == param or param is None


async def test_reasoning_is_an_item_before_the_message(make: Callable[[], Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        says(world, "<think>\nHm, hm.\n</think>\n\nYes.")
        whole = (await respond(world)).json()
        events = events_in(await respond(world, stream=True))
        reasoning = [one.replace("output_text", "reasoning_text") for one in TEXT_EVENTS]
        assert kinds(events) == [*BEGIN, *reasoning, *TEXT_EVENTS, "response.completed"]
        assert without_ids(events[-1]["response"]) == without_ids(whole)
        thought, message = whole["output"]
        assert (thought["content"], thought["summary"]) == ([{"type": "reasoning_text", "text": "Hm, hm."}], [])
        assert message["content"][0]["text"] == "Yes."
        assert 0 < whole["usage"]["output_tokens_details"]["reasoning_tokens"] < whole["usage"]["output_tokens"]


async def test_a_prompts_tokens_are_counted_as_they_would_be_used(make: Callable[[], Any]) -> None:
    async with make() as world, world.node("a", 0, 1, 2):
        await world.ready()
        body = {"model": "tiny", "input": "hi", "instructions": "be terse", "tools": [TOOL]}
        counted = (await world.client.post("/v1/responses/input_tokens", json=body)).json()
        used = (await respond(world, **body, max_output_tokens=1)).json()["usage"]["input_tokens"]
        assert counted == {"object": "response.input_tokens", "input_tokens": used}
