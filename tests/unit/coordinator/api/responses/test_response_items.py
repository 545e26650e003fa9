"""A response's input becomes a chat's messages, or a sentence that names the item."""

from __future__ import annotations

from typing import Any

import pytest

from shardnet.coordinator.api.responses.items import conversation_of
from shardnet.coordinator.api.responses.request import ResponsesRequest
from shardnet.errors import UsageError

CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "7"}
ASKED = {"role": "user", "content": "hi"}
CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def messages(given: Any, instructions: str | None = None) -> list[dict[str, Any]]:
    return conversation_of(given, instructions).messages


def refused(**more: Any) -> UsageError:
    try:
        meant = ResponsesRequest.model_validate({"input": "hi"} | more).translated()
        with meant.in_client_words():
            meant.chat.check_supported()
            meant.chat.structure()
    except UsageError as error:
        return error
    pytest.fail("nothing was refused")


def test_a_text_is_the_users_and_instructions_are_the_systems() -> None:
    assert messages("hi", "be terse") == [{"role": "system", "content": "be terse"}, {"role": "user", "content": "hi"}]


def test_reasoning_text_and_calls_of_one_answer_are_one_message() -> None:
    reasoning = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
    }
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]}
    assert messages([ASKED, reasoning, said, CALL, OUTPUT]) == [
        ASKED,
        {"role": "assistant", "reasoning_content": "hm", "content": said["content"], "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ]


def test_a_call_before_its_text_and_a_text_behind_a_call_are_one_message_too() -> None:
    said = {"role": "assistant", "content": "I look."}
    assert messages([ASKED, CALL, said]) == [ASKED, {**said, "tool_calls": [CALLED]}]
    (_, answer) = messages([ASKED, said, CALL, {"role": "assistant", "content": "Wait."}])
    assert "".join(part["text"] for part in answer["content"]) == "I look.\nWait."


def test_two_texts_and_two_answers_stay_two_messages() -> None:
    said = {"role": "assistant", "content": "a"}
    assert messages([said, said]) == [said, said]
    assert [one["role"] for one in messages([CALL, OUTPUT, said, ASKED, said])] == [
        *("assistant", "tool", "assistant"),
        *("user", "assistant"),
    ]


def test_parallel_calls_are_one_message_with_two_calls() -> None:
    other = CALL | {"call_id": "c2"}
    made = messages([ASKED, CALL, other, OUTPUT, OUTPUT | {"call_id": "c2"}])
    assert [one["id"] for one in made[1]["tool_calls"]] == ["c1", "c2"]
    assert [one["tool_call_id"] for one in made[2:]] == ["c1", "c2"]


def test_a_summary_stands_for_reasoning_that_did_not_come_and_reasoning_without_an_answer_is_left_out() -> None:
    summary = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "short"}]}
    sealed = {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "xyz"}
    assert messages([summary, CALL])[0]["reasoning_content"] == "short"
    assert "reasoning_content" not in messages([sealed, CALL])[0]
    assert messages([summary, ASKED, {"role": "assistant", "content": "a"}])[1] == {"role": "assistant", "content": "a"}


def test_a_call_that_broke_off_is_left_out_for_its_text_is_a_message() -> None:
    cut = CALL | {"arguments": '{"a', "status": "incomplete"}
    said = {"role": "assistant", "content": '<tool_call>{"a'}
    assert messages([ASKED, cut, said]) == [ASKED, said]
    assert messages([CALL | {"status": "incomplete"}])[0]["tool_calls"] == [CALLED]


def test_a_refusal_is_the_text_that_it_is() -> None:
    item = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert messages([item])[0]["content"] == [{"type": "output_text", "text": "No."}]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "input: is missing"),
        (7, "input: must be a text or a list"),
        ([], "input: must not be empty"),
        ({"role": "user"}, "input: must be a text or a list"),
        (["hi"], "input.0: an item is an object"),
        ([None], "input.0: an item is an object"),
        ([{}], "input.0.type: is missing, and so is a role"),
        ([{"content": "x"}], "input.0.type: is missing, and so is a role"),
        ([ASKED, {"type": "item_reference", "id": "msg_1"}], "input.1: nothing is kept here"),
        ([{"type": "web_search_call"}], "input.0: an item of type 'web_search_call' cannot be taken"),
        ([{"type": ["x"]}], "input.0: an item of type"),
        ([{"type": "message", "content": "x"}], "input.0.role: is missing"),
        ([{"role": "tool", "content": "x"}], "input.0.role: must be one of"),
        ([{"role": "user", "content": 7}], "input.0.content: must be a text or a list"),
        ([{"role": "user", "content": ["x"]}], "input.0.content.0: must be an object"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], "input.0.content.0: a part of"),
        (
            [{"role": "user", "content": [{"type": "input_text"}]}],
            "input.0.content.0: a part of type 'input_text' needs",
        ),
        ([CALL | {"arguments": {}}], "input.0.arguments: must be a text"),
        ([CALL | {"call_id": ""}], "input.0.call_id: must not be empty"),
        ([OUTPUT], "input.0.call_id: no function_call before it has the call_id 'c1'"),
        ([CALL, OUTPUT | {"output": None}], "input.1.output: must be a text or a list"),
        ([CALL, OUTPUT | {"output": [{"type": "input_image"}]}], "input.1.output.0: a part of type 'input_image'"),
        ([{"type": "reasoning", "content": "hm"}], "input.0.content: must be a list"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_place(given: Any, words: str) -> None:
    error = refused(input=given)
    assert str(error).startswith(words)
    assert str(error.facts["param"]).startswith("input")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"store": True}, "store: nothing is kept here"),
        ({"previous_response_id": "resp_1"}, "previous_response_id: nothing is kept here"),
        ({"conversation": {"id": "conv_1"}}, "conversation: nothing is kept here"),
        ({"background": True}, "background: "),
        ({"truncation": "auto"}, "truncation: "),
        ({"prompt": {"id": "p"}}, "prompt: nothing is kept here"),
        ({"tools": [{"type": "web_search"}]}, "tools.0: a tool of type 'web_search' is not supported"),
        ({"tools": [{"type": "function"}]}, "tools.0.name: "),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools.0.name: "),
        ({"tools": [{"type": "function", "name": "f", "parameters": []}]}, "tools.0.parameters: "),
        ({"tools": [None]}, "tools: a tool is an object"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice: give "),
        ({"tool_choice": "required"}, "tool_choice: there are no tools"),
        ({"text": {"format": {"type": "xml"}}}, "text.format: 'xml' is not supported"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format: "),
        ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "text.format: "),
        ({"temperature": -1}, "temperature: must be at least 0"),
        ({"stop": ["x"] * 20}, "stop: must have at most 16 entries"),
        ({"grammar": "root ::= [a-z]", "json_schema": {}}, "grammar: an answer has one structure"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_the_clients_own_names(more: dict[str, Any], words: str) -> None:
    assert str(refused(**more)).startswith(words)


def test_what_is_asked_arrives_in_the_chat() -> None:
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    tool = {"type": "function", "name": "f", "description": None, "parameters": schema, "strict": True}
    request = ResponsesRequest.model_validate(
        {
            "model": "m",
            "input": "hi",
            "store": False,
            "max_output_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 3,
            "stop": "x",
            "tools": [tool],
            "tool_choice": {"type": "function", "name": "f"},
            "parallel_tool_calls": False,
            "reasoning": {"effort": "low", "summary": "auto"},
            "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
            "top_logprobs": 2,
            "truncation": "disabled",
            "prompt_cache_key": "ignored",
        }
    )
    chat = request.translated().chat
    chat.check_supported()
    asked = chat.tools_asked()
    assert asked is not None
    assert (asked.choice, asked.parallel, asked.functions[0].strict) == ("required", False, True)
    assert chat.tools == [{"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}]
    assert (chat.model, chat.most_tokens(), chat.temperature, chat.top_p, chat.seed) == ("m", 7, 0.5, 0.9, 3)
    assert (chat.stops(), chat.template_variables(), chat.top_logprobs_wanted()) == (
        ("x",),
        {"reasoning_effort": "low"},
        2,
    )


def test_a_form_is_the_chats_response_format() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for format in ({"type": "json_schema", "name": "x", "strict": True, "schema": schema}, {"type": "json_object"}):
        chat = ResponsesRequest.model_validate({"input": "hi", "text": {"format": format}}).translated().chat
        assert chat.structure()
    for free in ({}, None, {"format": None}, {"format": {"type": "text"}}):
        assert ResponsesRequest.model_validate({"input": "hi", "text": free}).translated().chat.structure() is None


def test_null_is_as_if_it_was_left_out() -> None:
    fields = ("instructions", "store", "previous_response_id", "tools", "tool_choice", "text", "reasoning", "include")
    nothing = ResponsesRequest.model_validate({"input": "hi"} | dict.fromkeys(fields)).translated().chat
    assert nothing == ResponsesRequest.model_validate({"input": "hi"}).translated().chat
