"""What was said, and an answer while it comes: plain data."""

from __future__ import annotations

import json

import pytest

from shardnet.chat.conversation import Conversation, Reply, check_tools, from_json
from shardnet.errors import UsageError

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


def event(finish_reason: str | None = None, token_ids: tuple[int, ...] = (), **delta: object) -> dict[str, object]:
    return {"choices": [{"delta": delta, "token_ids": token_ids, "finish_reason": finish_reason}]}


def test_a_reply_is_put_together_out_of_its_events() -> None:
    reply = Reply()
    reply.take(event(role="assistant", content=""), 0.1)
    reply.take(event(reasoning_content="It rains", token_ids=(1,)), 0.5)
    reply.take(event(content="Yes", token_ids=(2, 3)), 1.0)
    stages = [{"node": "a", "layers": "[0, 2)"}, {"node": "b", "layers": "[2, 4)"}]
    reply.take(event("stop", content=".") | {"shardnet": {"stages": stages}}, 1.5)
    assert reply.message() == {"role": "assistant", "content": "Yes.", "reasoning_content": "It rains"}
    assert reply.facts() == "3 tokens, 4.0 tokens/s, first after 0.50 s · a [0, 2) → b [2, 4)"


def test_a_call_comes_in_pieces() -> None:
    reply = Reply()
    for delta in (
        {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city": '}},
        {"index": 0, "function": {"arguments": '"Oslo"}'}},
    ):
        reply.take(event(tool_calls=[delta]), 0.1)
    assert reply.message()["tool_calls"] == [CALL]
    reply.broken_off = True
    assert "tool_calls" not in reply.message()  # nobody could answer it


def test_a_single_token_has_no_speed() -> None:
    reply = Reply()
    reply.take(event("length", content="a", token_ids=(1,)), 0.2)
    assert reply.facts() == "1 token, first after 0.20 s, cut off: the length allowed or the context is full"


def test_what_is_asked_is_all_that_was_said() -> None:
    talk = Conversation("m", "Be short.", options={"temperature": 0}, tools=[TOOL])
    talk.say("hello")
    assert talk.body() == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hello"}],
        "temperature": 0,
        "tools": [TOOL],
        "return_token_ids": True,
    }


def test_what_is_taken_back_goes_with_all_that_came_of_it() -> None:
    talk = Conversation()
    assert talk.take_back() is None
    talk.say("one")
    talk.messages.append({"role": "assistant", "content": "1"})
    talk.say("two")
    talk.messages.append({"role": "assistant", "content": "", "tool_calls": [CALL]})
    talk.give_result(CALL, "rain")
    assert talk.messages[-1] == {"role": "tool", "tool_call_id": "c1", "content": "rain"}
    assert talk.take_back() == "two"
    assert [one["content"] for one in talk.messages] == ["one", "1"]


def test_what_is_saved_comes_back() -> None:
    talk = Conversation("m", "Be short.", [{"role": "user", "content": "héllo"}], [TOOL], {"top_p": 0.5})
    again = from_json(talk.as_json(), "talk.json")
    assert (again.system, again.messages, again.tools, again.options) == (
        talk.system,
        talk.messages,
        talk.tools,
        talk.options,
    )
    talk.messages.append({"role": "assistant", "content": "", "tool_calls": [CALL]})
    assert '`weather({"city": "Oslo"})`' in talk.as_markdown()


def test_a_plain_list_of_messages_is_a_conversation_too() -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hello"}]
    talk = from_json(json.dumps(messages), "talk.json")
    assert (talk.system, len(talk.messages)) == ("Be short.", 1)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "not JSON"),
        ("3", "no list of messages"),
        ("{}", "no list of messages"),
        ('[{"role": "pope"}]', "message 0 has no role of"),
        ('["hello"]', "message 0 has no role of"),
        ('{"messages": [], "options": 3}', "options"),
        ('{"messages": [], "system": 3}', "system message"),
        ('{"messages": [], "tools": [3]}', "tool 0 is no function"),
    ],
)
def test_a_file_that_is_no_conversation_is_told_by_what_is_wrong(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=r"talk\.json") as told:
        from_json(text, "talk.json")
    assert what in str(told.value)


def test_tools_are_taken_as_people_write_them() -> None:
    bare = TOOL["function"]
    assert check_tools([TOOL], "t") == check_tools(bare, "t") == check_tools([bare], "t") == [TOOL]
    with pytest.raises(UsageError, match="holds no list of tools"):
        check_tools("weather", "t")
