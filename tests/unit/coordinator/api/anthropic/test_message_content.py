"""Messages of content blocks become a chat's messages, or a sentence that names the block."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from shardnet.coordinator.api.anthropic.content import conversation_of
from shardnet.coordinator.api.anthropic.request import CountRequest, MessagesRequest
from shardnet.coordinator.api.schemas import ChatRequest, usage_error
from shardnet.errors import UsageError

ASKED = {"role": "user", "content": "hi"}
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "ö"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "7"}
CALLED = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a": "ö"}'}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def messages(*given: dict[str, Any], system: Any = None) -> list[dict[str, Any]]:
    return conversation_of(given, system).messages


def said(message: dict[str, Any]) -> str:
    content: str = message["content"]
    return content


def chat(**more: Any) -> ChatRequest:
    meant = MessagesRequest.model_validate({"messages": [ASKED], "max_tokens": 9} | more).translated()
    with meant.in_client_words():
        meant.chat.check_supported()
        meant.chat.structure()
    return meant.chat


def refused(**more: Any) -> UsageError:
    try:
        chat(**more)
    except UsageError as error:
        return error
    except ValidationError as error:
        return usage_error(error)
    pytest.fail("nothing was refused")


def test_system_texts_come_first_whatever_is_cached() -> None:
    block = text("be terse") | {"cache_control": {"type": "ephemeral"}}
    given: Any
    for given in ("be terse", [block]):
        first, second = messages(ASKED, system=given)
        assert (first["role"], said(first)) == ("system", "be terse")
        assert (second["role"], said(second)) == ("user", "hi")
    for given in ("", [], None):
        assert [one["role"] for one in messages(ASKED, system=given)] == ["user"]


def test_thoughts_text_and_calls_are_one_message_and_results_are_messages_of_their_own() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "unsigned"}
    made = messages(
        ASKED,
        {"role": "assistant", "content": [thinking, text("I look."), USE]},
        {"role": "user", "content": [RESULT, text("Well?")]},
    )
    assert [one["role"] for one in made] == ["user", "assistant", "tool", "user"]
    assert made[1]["reasoning_content"] == "hm"
    assert (said(made[1]), made[1]["tool_calls"]) == ("I look.", [CALLED])
    assert (said(made[2]), made[2]["tool_call_id"], said(made[3])) == ("7", "t1", "Well?")


def test_calls_alone_are_a_message_without_content() -> None:
    assert messages(ASKED, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [RESULT]})[1] == {
        "role": "assistant",
        "tool_calls": [CALLED],
    }


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"content": [text("a"), text("b")]}, "ab"),
        ({"content": None}, ""),
        ({"content": []}, ""),
        ({"content": "no such city", "is_error": True}, "Error: no such city"),
        ({"is_error": True, "content": None}, "Error: "),
    ],
)
def test_a_result_is_text_and_a_failure_says_that_it_is_one(more: dict[str, Any], words: str) -> None:
    called = {"role": "assistant", "content": [USE]}
    assert said(messages(ASKED, called, {"role": "user", "content": [RESULT | more]})[-1]) == words


def test_messages_of_one_role_that_follow_each_other_are_one_turn() -> None:
    made = messages(ASKED, ASKED, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": [text("b")]})
    assert [(one["role"], said(one)) for one in made] == [("user", "hi\n\nhi"), ("assistant", "a\n\nb")]


def test_an_answer_that_was_begun_goes_on() -> None:
    begun = [ASKED, {"role": "assistant", "content": "The sky is"}]
    assert chat(messages=begun).continue_final_message is True
    assert chat().continue_final_message is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "messages: must not be empty"),
        (["hi"], "messages.0: must be an object"),
        ([{"role": "tool", "content": "x"}], "messages.0.role: must be one of"),
        ([{"role": "user"}], "messages.0.content: is missing"),
        ([{"role": "user", "content": None}], "messages.0.content: must be a text or a list"),
        ([{"role": "user", "content": ["x"]}], "messages.0.content.0: a block is an object"),
        ([{"role": "user", "content": [{}]}], "messages.0.content.0.type: is missing"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text: is missing"),
        ([{"role": "user", "content": [{"type": "image"}]}], "messages.0.content.0: a block of type 'image' cannot"),
        ([{"role": "user", "content": [{"type": ["x"]}]}], "messages.0.content.0: a block of type"),
        ([{"role": "user", "content": [USE]}], "messages.0.content.0: a block of type 'tool_use' in a message of role"),
        ([ASKED, {"role": "assistant", "content": [USE]}], "messages.1: the conversation ends with calls"),
        ([ASKED, {"role": "assistant", "content": [USE | {"input": "{"}]}], "messages.1.content.0.input: must be an"),
        ([{"role": "user", "content": [RESULT]}], "messages.0.content.0.tool_use_id: no tool_use before it"),
        ([{"role": "user", "content": [RESULT | {"content": 7}]}], "messages.0.content.0.content: must be a text"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_place(given: Any, words: str) -> None:
    assert str(refused(messages=given)).startswith(words)


def test_a_picture_in_a_result_is_refused_with_its_place() -> None:
    result = RESULT | {"content": [{"type": "image", "source": {}}]}
    error = refused(messages=[ASKED, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [result]}])
    assert str(error).startswith("messages.2.content.0.content.0: a block of type 'image' cannot be taken")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"max_tokens": None}, "max_tokens: must be a whole number"),
        ({"max_tokens": 0}, "max_tokens: must be at least 1"),
        ({"system": 7}, "system: must be a text or a list"),
        ({"system": [{"type": "image"}]}, "system.0: a block of type 'image'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0: a tool of type 'web_search_2"),
        ({"tools": ["f"]}, "tools.0: a tool is an object"),
        ({"tools": [{"name": "f", "input_schema": {"type": "string"}}]}, "tools.0.input_schema: arguments are of"),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name: "),
        ({"tool_choice": {"type": "any"}}, "tool_choice: there are no tools"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice: give "),
        ({"tool_choice": {"type": "function"}}, "tool_choice: give "),
        ({"tool_choice": "auto"}, "tool_choice: must be an object"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences: must have at most 16 entries"),
        ({"stop_sequences": "x"}, "stop_sequences: must be a list"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format: 'xml' is not supported"),
        ({"output_format": {"type": "json_schema"}}, "output_config.format: "),
        ({"container": "c"}, "container: "),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers: "),
        ({"temperature": "hot"}, "temperature: must be a number"),
        ({"messages": [ASKED, {"role": "assistant", "content": [{"type": "redacted_thinking"}]}]}, ""),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_the_clients_own_names(more: dict[str, Any], words: str) -> None:
    if words:
        assert str(refused(**more)).startswith(words)
    else:
        assert chat(**more).messages[-1].role == "assistant"


def test_a_thread_is_refused_with_the_code_that_makes_clients_do_without() -> None:
    error = refused(thread={"type": "create"})
    assert str(error).startswith("thread: nothing is kept here")
    assert error.facts["error_code"] == "thread_unsupported_request"


def test_what_is_asked_arrives_in_the_chat() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = {"name": "f", "description": "d", "input_schema": schema, "strict": True, "cache_control": {}}
    made = chat(
        model="m",
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop_sequences=["x", ""],
        tools=[tool],
        tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 2000},
        output_config={"effort": "low"},
        metadata={"user_id": "u"},
        service_tier="auto",
        context_management={"edits": []},
    )
    asked = made.tools_asked()
    assert asked is not None
    assert (asked.choice, asked.parallel, asked.functions[0].strict) == ("required", False, True)
    function = {"name": "f", "description": "d", "parameters": schema, "strict": True}
    assert made.tools == [{"type": "function", "function": function}]
    assert (made.model, made.most_tokens(), made.temperature, made.top_p, made.top_k) == ("m", 9, 0.5, 0.9, 40)
    assert made.stops() == ("x",)
    assert made.template_variables() == {"enable_thinking": True, "reasoning_effort": "low"}


def test_thinking_can_be_turned_off_and_a_form_asked_for() -> None:
    assert chat(thinking={"type": "disabled"}).template_variables() == {"enable_thinking": False}
    assert chat(
        thinking={"type": "adaptive"}, chat_template_kwargs={"enable_thinking": False}
    ).template_variables() == {"enable_thinking": False}
    format = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    assert chat(output_config={"format": format}).structure()
    assert chat(output_format=format).structure()


def test_counting_needs_no_max_tokens() -> None:
    assert CountRequest.model_validate({"messages": [ASKED]}).translated().chat.messages[0].role == "user"


def test_null_is_as_if_it_was_left_out() -> None:
    fields = ("system", "tools", "tool_choice", "thinking", "stop_sequences", "output_config", "temperature", "thread")
    assert chat(**dict.fromkeys(fields)) == chat()
