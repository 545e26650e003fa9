"""What a chat's answer may be: where tools, structure and reasoning meet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardnet.coordinator.api.chats import Prepared, prepare
from shardnet.coordinator.api.schemas import ChatRequest, CompletionRequest
from shardnet.coordinator.structure.grammars import schema_grammar
from shardnet.coordinator.text.template import ChatTemplate
from shardnet.coordinator.text.vocabulary import Vocabulary
from shardnet.coordinator.text.words import Words
from shardnet.errors import UsageError
from tests.support.byte_grammars import ByteVocabulary
from tests.support.call_templates import TEMPLATES
from tests.support.random_models import tiny_llama
from tests.support.written_calls import Found, put_together

THINKS = "{{ messages[-1].content.split('</think>')[-1] }}{{ tools | tojson if tools }}<think>\n"
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    opened = Vocabulary(tiny_llama(Path(tmp_path_factory.mktemp("words")) / "tokenizer.gguf", n_layers=1))
    yield opened
    opened.close()


async def prepared(vocabulary: Vocabulary, template: str, **more: Any) -> Prepared:
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}]} | more)
    request.check_supported()
    return await prepare(request, Words(vocabulary, ChatTemplate(template, model="m")), request.structure(), 20)


def read(vocabulary: Vocabulary, one: Prepared, text: str) -> Found:
    stream = one.stream()
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=False)
    return put_together([event for token in tokens for event in stream.push(token)] + stream.flush())


async def test_an_answer_to_a_prompt_that_opened_reasoning_begins_within_it(vocabulary: Vocabulary) -> None:
    one = await prepared(vocabulary, THINKS)
    found = read(vocabulary, one, "Well.\n</think>\n\nYes.")
    assert (found.reasoning, found.content, one.grammar) == ("Well.", "Yes.", None)


async def test_a_structure_comes_behind_reasoning_and_with_gbnf_in_its_place(vocabulary: Vocabulary) -> None:
    behind = await prepared(vocabulary, THINKS, response_format={"type": "json_object"})
    assert behind.grammar is not None
    assert "thoughts" in behind.grammar
    found = read(vocabulary, behind, "Well.\n</think>\n{}")
    assert (found.reasoning, found.content) == ("Well.", "{}")
    instead = await prepared(vocabulary, THINKS, grammar='root ::= "{}"')
    assert instead.grammar is None
    found = read(vocabulary, instead, "{}")
    assert (found.reasoning, found.content) == ("", "{}")


async def test_an_enforced_call_has_a_grammar_and_a_free_one_has_none(vocabulary: Vocabulary) -> None:
    for more, enforced in (
        ({}, False),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, True),
        ({"tool_choice": "none"}, False),
    ):
        one = await prepared(vocabulary, TEMPLATES["hermes"], tools=[TOOL], **more)
        assert (one.grammar is not None) is enforced
        assert read(vocabulary, one, CALL).done == (more.get("tool_choice") != "none")


async def test_what_cannot_be_enforced_is_refused_for_a_strict_function_and_left_for_another(
    vocabulary: Vocabulary,
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "not": {"required": ["a"]}}
    for strict in (False, True):
        tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": strict}}
        asked = prepared(vocabulary, TEMPLATES["hermes"], tools=[tool], tool_choice="required")
        if strict:
            with pytest.raises(UsageError, match="function f"):
                await asked
        else:
            assert (await asked).grammar is not None


JSON_OBJECT = {"response_format": {"type": "json_object"}}


@pytest.mark.parametrize("strict", [False, True])
async def test_beside_a_structure_the_answer_is_calls_or_the_structure(vocabulary: Vocabulary, strict: bool) -> None:
    tool = {"type": "function", "function": {**TOOL["function"], "strict": strict}}  # type: ignore[dict-item]
    one = await prepared(vocabulary, TEMPLATES["hermes"], tools=[tool], **JSON_OBJECT)
    assert one.grammar is not None
    document = '{"name": "f", "arguments": {"a": 1}}'
    for text, is_permitted in ((CALL, True), (document, True), ("Hello.", False), (CALL + "\n{}", False)):
        assert ByteVocabulary().accepts(one.grammar, text) is is_permitted
    assert read(vocabulary, one, CALL).done == 1
    found = read(vocabulary, one, document)
    assert (found.done, found.content) == (0, document)


async def test_a_structure_is_nothing_to_an_answer_that_must_call(vocabulary: Vocabulary) -> None:
    one = await prepared(vocabulary, TEMPLATES["hermes"], tools=[TOOL], tool_choice="required", **JSON_OBJECT)
    assert one.grammar is not None
    assert ByteVocabulary().accepts(one.grammar, CALL)
    assert not ByteVocabulary().accepts(one.grammar, "{}")


async def test_gbnf_beside_strict_functions_is_refused_and_beside_others_the_answer_is_no_call(
    vocabulary: Vocabulary,
) -> None:
    gbnf = {"grammar": 'root ::= "{}"'}
    strict = {"type": "function", "function": {"name": "f", "strict": True}}
    with pytest.raises(UsageError, match="GBNF"):
        await prepared(vocabulary, TEMPLATES["hermes"], tools=[strict], **gbnf)
    one = await prepared(vocabulary, TEMPLATES["hermes"], tools=[TOOL], **gbnf)
    assert (one.grammar, read(vocabulary, one, CALL).done) == (None, 0)


async def test_a_structure_of_harmony_is_its_last_channel(vocabulary: Vocabulary) -> None:
    alone = await prepared(vocabulary, TEMPLATES["harmony"], **JSON_OBJECT)
    beside = await prepared(vocabulary, TEMPLATES["harmony"], tools=[TOOL], **JSON_OBJECT)
    final = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{}"
    call = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}'
    for one, may_call in ((alone, False), (beside, True)):
        assert one.grammar is not None
        assert ByteVocabulary().accepts(one.grammar, final)
        assert not ByteVocabulary().accepts(one.grammar, "<|channel|>final<|message|>Hello.")
        assert ByteVocabulary().accepts(one.grammar, call) is may_call
        found = read(vocabulary, one, final)
        assert (found.reasoning, found.content) == ("Hm.", "{}")


async def test_an_answer_whose_first_mark_is_the_prompts_end_begins_with_whom_it_is_for(vocabulary: Vocabulary) -> None:
    template = TEMPLATES["functionary 3.2"]
    plain = await prepared(vocabulary, template)
    assert read(vocabulary, plain, "all\nHello.").content == "Hello."
    free = await prepared(vocabulary, template, tools=[TOOL])
    found = read(vocabulary, free, 'all\nLet me see.>>>f\n{"a": 1}>>>f\n{}')
    assert (found.content, found.calls) == ("Let me see.", [("f", '{"a": 1}'), ("f", "{}")])
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]
    texts = ("f\n{}", "all\nHi.", "all\n{}", 'all\nHi.>>>f\n{"a": 1}', "Hi.", "{}", 'f\n{"a": "x"}')
    for more, permitted in (
        ({"tools": [TOOL], "tool_choice": "required"}, texts[:1]),
        ({"tools": [strict]}, texts[:4]),
        ({"tools": [TOOL], **JSON_OBJECT}, (texts[0], texts[2])),
        (JSON_OBJECT, (texts[2],)),
        ({"regex": "[{}]+", "continue_final_message": False}, (texts[2],)),
    ):
        one = await prepared(vocabulary, template, **more)
        assert one.grammar is not None
        assert tuple(text for text in texts if ByteVocabulary().accepts(one.grammar, text)) == permitted
    assert read(vocabulary, await prepared(vocabulary, template, **JSON_OBJECT), "all\n{}").content == "{}"
    gbnf = await prepared(vocabulary, template, grammar='root ::= "{}"')
    assert (gbnf.grammar, read(vocabulary, gbnf, "{}").content) == (None, "{}")


async def test_a_structure_comes_where_the_model_puts_a_text_behind_its_reasoning(vocabulary: Vocabulary) -> None:
    opened = "<|open|>{}<|sep|>"
    for name, before in (("think", "Hm.<|close|>think<|sep|><|open|>response<|sep|>"), ("response", "")):
        template = TEMPLATES["kimi k3"].replace(
            "<|assistant|>{% endif %}", f"<|assistant|>{opened.format(name)}{{% endif %}}"
        )
        for more in (JSON_OBJECT, {"tools": [TOOL], **JSON_OBJECT}):
            one = await prepared(vocabulary, template, **more)
            assert one.grammar is not None or name == "response"
            grammar = one.grammar or schema_grammar({"type": "object"}, "x")
            assert ByteVocabulary().accepts(grammar, before + "{}")
            assert not ByteVocabulary().accepts(grammar, "Hm.<|close|>think<|sep|>{}")


async def test_tools_that_are_not_to_be_called_are_shown_beside_calls_alone(vocabulary: Vocabulary) -> None:
    def shown(one: Prepared) -> bool:
        return '"parameters"' in vocabulary.text(one.prompts[0])

    more: dict[str, Any] = {"tools": [TOOL], "tool_choice": "none"}
    assert not shown(await prepared(vocabulary, TEMPLATES["hermes"], **more))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "7"},
    ]
    assert shown(await prepared(vocabulary, TEMPLATES["hermes"], messages=messages, **more))


async def test_a_completion_is_text(vocabulary: Vocabulary) -> None:
    one = await prepare(CompletionRequest(prompt=["a", "b"]), Words(vocabulary, None), None, 20)
    assert len(one.prompts) == 2
    assert read(vocabulary, one, "<think>" + CALL).content == "<think>" + CALL
