"""A client's messages as a template wants them: nothing vanishes in silence, and the template is asked what it takes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shardnet.coordinator.text.template import ChatTemplate
from shardnet.errors import UsageError

CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris ö"}'}}
ROUND: list[dict[str, Any]] = [
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call00001", "content": "7"},
]
LOOP = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
CALLS = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}BODY{% endfor %};{% endfor %}"
FIRST_SYSTEM = (
    "{% if messages[0].role == 'system' %}S:{{ messages[0].content }};{% endif %}"
    "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.content }};{% endfor %}"
)


def said(role: str, text: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


def prompt(source: str, *messages: dict[str, Any], **more: Any) -> str:
    template = ChatTemplate(source, model="m")
    return "".join(part.text for part in asyncio.run(template.render(messages, **more)))


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("{{ c.function.arguments | tojson }}", '{"city": "Paris ö"}'),
        ("{{ c.function.arguments }}", '{"city": "Paris ö"}'),
        ("{{ '(' + c.function.arguments + ')' }}", '({"city": "Paris ö"})'),
        ("{% for k, v in c.function.arguments | items %}{{ k }}={{ v }}{% endfor %}", "city=Paris ö"),
        (
            "{% if c.function.arguments is mapping %}{{ c.function.arguments | tojson }}{% else %}{{ raise_exception('no') }}{% endif %}",
            '{"city": "Paris ö"}',
        ),
        (
            "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ raise_exception('no') }}{% endif %}",
            '{"city": "Paris ö"}',
        ),
    ],
)
@pytest.mark.parametrize("as_mapping", [False, True])
def test_arguments_come_as_text_or_mapping_as_the_template_takes_them(body: str, shown: str, as_mapping: bool) -> None:
    arguments: Any = {"city": "Paris ö"} if as_mapping else '{"city": "Paris ö"}'
    call = CALL | {"function": {"name": "weather", "arguments": arguments}}
    messages = [ROUND[0], ROUND[1] | {"tool_calls": [call]}, ROUND[2]]
    assert prompt(CALLS.replace("BODY", body), *messages) == f"u;weather{shown};7;"


@pytest.mark.parametrize(("arguments", "shown"), [("", "{}"), ("not json", None), ("[1]", None)])
def test_arguments_that_are_no_object_are_refused_where_the_template_wants_one(
    arguments: str, shown: str | None
) -> None:
    source = CALLS.replace("BODY", "{{ c.function.arguments | tojson }}")
    messages = [ROUND[0], ROUND[1] | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": arguments}}]}]
    if shown is None:
        with pytest.raises(UsageError, match=r"messages\[1\]\.tool_calls\[0\]\.function\.arguments"):
            prompt(source, *messages)
    else:
        assert prompt(source, *messages) == f"u;f{shown};"


def test_null_keys_are_as_if_absent() -> None:
    source = "{% for m in messages %}{{ m.content }}{% if 'tool_calls' in m %}{{ m.tool_calls | length }}{% endif %}{% endfor %}"
    assert prompt(source, said("user", "u"), said("assistant", "a", tool_calls=None, refusal=None)) == "ua"


def test_a_content_that_a_template_insists_on_is_empty() -> None:
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    source = "{% for m in messages %}{{ '[' + m.content + ']' }}" + calls + "{% endfor %}"
    assert prompt(source, *ROUND) == '[u][]weather{"city": "Paris ö"}[7]'


@pytest.mark.parametrize("given", ["reasoning", "reasoning_content", "thinking"])
@pytest.mark.parametrize("read", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_goes_by_three_names(given: str, read: str) -> None:
    source = f"{{% for m in messages %}}{{{{ m.{read} }}}}{{{{ m.content }}}}{{% endfor %}}"
    assert prompt(source, said("user", "u"), said("assistant", "a", **{given: "r"})) == "ura"


def test_further_variables_reach_the_template() -> None:
    source = "{{ reasoning_effort }}{{ messages[0].content }}"
    assert prompt(source, said("user", "u"), variables={"reasoning_effort": "high"}) == "highu"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (LOOP, "[system]brief[user]u"),
        (FIRST_SYSTEM, "S:brief;u;"),
        (
            "{% for m in messages if m.role in ('developer', 'user') %}[{{ m.role }}]{{ m.content }}{% endfor %}",
            "[developer]brief[user]u",
        ),
        ("{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}", "[brief\n\nu]"),
        ("{% if messages[0].role != 'user' %}{{ raise_exception('no') }}{% endif %}" + LOOP, "[user]brief\n\nu"),
    ],
)
def test_developer_is_system_where_the_template_does_not_know_it(source: str, shown: str) -> None:
    assert prompt(source, said("developer", "brief"), said("user", "u")) == shown


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (LOOP, "[system]a[system]b[user]u[assistant]v[system]c[user]w"),
        (FIRST_SYSTEM, "S:a\n\nb\n\nc;u;v;w;"),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }};{% endfor %}", "a\n\nb\n\nc\n\nu;v;w;"),
    ],
)
def test_system_texts_are_merged_where_the_template_drops_them(source: str, shown: str) -> None:
    system = [said("system", "a"), said("system", "b"), said("user", "u"), said("assistant", "v"), said("system", "c")]
    assert prompt(source, *system, said("user", "w")) == shown


def test_a_system_text_that_is_only_dropped_in_this_conversation_is_merged_too() -> None:
    source = (
        "{% for m in messages if m.role != 'system' %}{% if loop.last and m.role == 'user' and messages[0].role == 'system' %}"
        "{{ messages[0].content }}.{% endif %}{{ m.content }};{% endfor %}"
    )
    assert prompt(source, said("system", "s"), said("user", "u")) == "s.u;"
    assert prompt(source, said("system", "s"), said("user", "u"), said("assistant", "a")) == "s\n\nu;a;"


@pytest.mark.parametrize(
    ("messages", "number", "role"),
    [
        ([said("user", "u"), said("tool", "7")], 1, "tool"),
        ([said("user", "u"), said("critic", "bad"), said("user", "v")], 1, "critic"),
        (ROUND[:2], 1, "assistant"),
    ],
)
def test_a_message_that_leaves_no_trace_is_an_error(messages: list[dict[str, Any]], number: int, role: str) -> None:
    with pytest.raises(UsageError, match=rf"messages\[{number}\].*'{role}'"):
        prompt(FIRST_SYSTEM, *messages)


def test_a_message_with_nothing_to_say_needs_no_trace() -> None:
    assert prompt(FIRST_SYSTEM, said("user", "u"), said("assistant", ""), said("tool", " ")) == "u;;"


@pytest.mark.parametrize(
    "written",
    [
        "{{ m.content | title }}",
        "{{ m.content | wordwrap(3) }}",
        "{{ m.content | list }}",
        "{{ m.content | urlencode }}",
    ],
)
def test_a_text_written_in_an_unusual_way_still_leaves_its_trace(written: str) -> None:
    assert prompt("{% for m in messages %}" + written + "{% endfor %}", said("user", "some words"))


def test_a_turn_of_which_only_thoughts_were_dropped_is_not_left_out() -> None:
    source = "{% for m in messages %}[{{ m.content.split('<think>')[0] }}]{% endfor %}"
    assert prompt(source, said("user", "u"), said("assistant", "<think>cut sho"), said("user", "v")) == "[u][][v]"


def test_a_conversation_may_be_refused_by_the_template_in_its_own_words() -> None:
    with pytest.raises(UsageError, match="refuses this conversation: roles must alternate"):
        prompt("{{ raise_exception('roles must alternate') }}", said("user", "u"))


def test_a_template_that_only_reads_parts_gets_parts() -> None:
    source = "{% for m in messages %}{% if m.content is not string %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %}{% endfor %}"
    assert prompt(source, said("system", "s"), said("user", "u")) == "<s><u>"


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def test_an_answer_goes_on_where_the_last_message_ends() -> None:
    messages = [said("user", "Count."), said("assistant", "One, two, ")]
    assert prompt(TURNS, *messages, continues=True) == "<user>Count.<end><assistant>One, two,"
    assert prompt(TURNS, *messages) == "<user>Count.<end><assistant>One, two,<end><assistant>"
    assert prompt(TURNS.replace(" | trim", ""), *messages, continues=True).endswith("<assistant>One, two, ")


def test_a_text_that_is_in_the_prompt_twice_is_gone_on_with_at_its_own_place() -> None:
    source = TURNS + "{% if not add_generation_prompt %}<end> One{% endif %}"
    assert (
        prompt(source, said("user", "One"), said("assistant", "One"), continues=True) == "<user>One<end><assistant>One"
    )


@pytest.mark.parametrize(
    ("source", "last", "reason"),
    [
        (TURNS, said("user", "x"), "must be the assistant's"),
        (TURNS, said("assistant", " "), "must be the assistant's"),
        (TURNS.replace("trim", "upper | trim"), said("assistant", "x"), "does not end with"),
        (TURNS.replace("trim", "wordwrap(1)"), said("assistant", "x"), "does not end with"),
    ],
)
def test_an_answer_that_cannot_go_on_is_refused_by_name(source: str, last: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=f"continue_final_message: .*{reason}"):
        prompt(source, said("user", "u"), last, continues=True)


def test_the_answer_need_not_be_begun() -> None:
    assert prompt(TURNS, said("user", "u"), begins_answer=False) == "<user>u<end>"


def test_a_template_that_lists_tools_is_asked_without_any_too() -> None:
    source = "{% for t in tools %}T{% endfor %}" + LOOP
    assert prompt(source, said("system", "s"), said("user", "u")) == "[system]s[user]u"
    assert prompt(source, said("system", "s"), said("user", "u"), tools=[{}]) == "T[system]s[user]u"
