"""Call, result, answer: what a model writes in its format comes back into its template as it was."""

from __future__ import annotations

from typing import Any

import pytest

from shardnet.coordinator.api.messages import message_of
from shardnet.coordinator.text.calls.answer import AnswerParser
from shardnet.coordinator.text.calls.events import Event
from shardnet.coordinator.text.template import ChatTemplate
from tests.support.call_templates import TEMPLATES
from tests.support.written_calls import PARIS, TOOLS, put_together

OFFERED = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in TOOLS.items()]
QUESTION = {"role": "user", "content": "What is the weather?"}
ALONE = {"llama", "harmony"}
"""One call an answer."""


def called(*names: str, call_id: str = "call{}") -> dict[str, Any]:
    given = {"weather": PARIS, "now": {}}
    return {
        "role": "assistant",
        "tool_calls": [
            {
                "id": call_id.format(f"{at:05}", name=name),
                "type": "function",
                "function": {"name": name, "arguments": given[name]},
            }
            for at, name in enumerate(names)
        ],
    }


async def written(template: ChatTemplate, *messages: dict[str, Any], begins: bool = True) -> str:
    parts = await template.render(list(messages), tools=OFFERED, begins_answer=begins, timeout_s=20)
    return "".join(part.text for part in parts)


@pytest.mark.parametrize("name", TEMPLATES)
async def test_a_call_comes_back_into_the_template_as_the_model_wrote_it(name: str) -> None:
    template = ChatTemplate(TEMPLATES[name], model=name)
    format = await template.answers(tools=True, timeout_s=20)
    assert format.name == name
    names = ("weather",) if name in ALONE else ("weather", "now")
    ids = "functions.{name}:{}" if name == "kimi" else "call{}"
    begun = await written(template, QUESTION)
    answer = (await written(template, QUESTION, called(*names, call_id=ids), begins=False)).removeprefix(begun)

    events: list[Event] = []
    parser = AnswerParser(format, TOOLS)
    for char in answer.removesuffix("<|end|>\n"):
        events += parser.push(char)
    events += parser.end()
    assert put_together(events).arguments == ([PARIS] if name in ALONE else [PARIS, {}])
    message = message_of(events)
    assert message["content"] is None

    results = [
        {"role": "tool", "tool_call_id": one["id"], "name": one["function"]["name"], "content": f"{at} C"}
        for at, one in enumerate(message["tool_calls"])
    ]
    second = await written(template, QUESTION, message, *results)
    if name not in (
        "mistral list",
        "solar",
    ):  # their ids, which the server makes where a model leaves its own to come late
        assert second.startswith(begun + answer)
    assert all(one["content"] in second for one in results)
    last = await written(
        template, QUESTION, message, *results, {"role": "assistant", "content": "It is fine."}, QUESTION
    )
    assert last.startswith(second[: second.rindex("assistant")])
    assert "It is fine." in last


async def test_reasoning_before_a_call_goes_back_too() -> None:
    template = ChatTemplate(TEMPLATES["harmony"], model="m")
    answer = (
        "<|channel|>analysis<|message|>Where?<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rom"}<|call|>'
    )
    parser = AnswerParser(await template.answers(tools=True), TOOLS)
    message = message_of([*parser.push(answer), *parser.end()])
    assert message["reasoning_content"] == "Where?"
    assert answer in await written(template, QUESTION, message, {"role": "tool", "content": "7 C"})


async def test_a_template_without_calls_is_known_by_its_marks() -> None:
    for marks, name in (
        ("<tool_call> <arg_key>", "glm"),
        ("<tool_call> <function=", "qwen3 coder"),
        ("[TOOL_CALLS] [ARGS]", "mistral"),
        ("nothing", "generic"),
    ):
        source = "{{ tools }}{{ messages[0].content }}" + marks
        format = await ChatTemplate(source, model="m").answers(tools=True)
        assert (format.name, format.writes_calls) == (name, False)


async def test_a_template_that_shows_no_tools_says_so() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", model="m")
    assert not (await template.answers(tools=True)).shows_tools
    assert (await ChatTemplate(TEMPLATES["hermes"], model="m").answers(tools=True)).shows_tools
