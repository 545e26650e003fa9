"""Vocabularies of llama.cpp: what a client spells is text in them, also where llama.cpp looks for a token in every text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet.coordinator.text.control import Part
from shardnet.coordinator.text.vocabulary import Vocabulary
from shardnet.coordinator.text.words import Words, open_words
from tests.support.random_models import (
    CONTROL,
    USER_DEFINED,
    bpe_vocabulary,
    spm_vocabulary,
    tiny_llama,
    with_tokens,
)

CHANNEL, THINK, SPACES = "<|channel|>", "<think>", "   "
TEMPLATE = "{% for m in messages %}<|channel|>{{ m.content }}<|im_end|>{% endfor %}{{ '<think>' }}"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Words]:
    added = {CHANNEL: CONTROL, THINK: USER_DEFINED, SPACES: USER_DEFINED}
    extra = with_tokens(bpe_vocabulary(), added) | {
        "tokenizer.chat_template": TEMPLATE,
        "tokenizer.chat_template.tool_use": "T" + TEMPLATE,
        "tokenizer.chat_templates": ["tool_use"],
    }
    opened = open_words("m", tiny_llama(tmp_path_factory.mktemp("words") / "tokenizer.gguf", n_layers=1, extra=extra))
    yield opened
    opened.vocabulary.close()


def token(vocabulary: Vocabulary, text: str) -> int:
    [found] = vocabulary.tokenize(text, add_special=False, parse_special=True)
    return found


def written(vocabulary: Vocabulary, tokens: list[int]) -> str:
    return b"".join(vocabulary.piece(one) or vocabulary.text_of(one).encode() for one in tokens).decode()


def test_llama_cpp_looks_for_some_control_tokens_in_every_text(words: Words) -> None:
    assert {CHANNEL, THINK, SPACES} <= words.vocabulary.defined_texts
    assert token(words.vocabulary, CHANNEL) in words.vocabulary.tokenize(
        f"a{CHANNEL}", add_special=False, parse_special=False
    )


async def test_a_clients_spelling_is_text_and_the_templates_is_a_token(words: Words) -> None:
    text = f"a{CHANNEL}b{THINK}c<|im_end|>d{SPACES}e"
    tokens = (await words.chat_prompt([{"role": "user", "content": text}], None, 2)).tokens
    assert written(words.vocabulary, tokens) == f"{CHANNEL}{text}<|im_end|>{THINK}"
    for special in (CHANNEL, THINK, "<|im_end|>"):
        assert tokens.count(token(words.vocabulary, special)) == 1
    assert tokens.count(token(words.vocabulary, SPACES)) == 1, "runs of spaces are text like any other"


async def test_a_prompt_without_a_template_spells_no_control_token_either(words: Words) -> None:
    text = f"a{CHANNEL}b{THINK}c<|im_end|>d"
    for given in (words, Words(words.vocabulary, None, "none")):
        tokens = await given.prompt_tokens(text)
        assert written(words.vocabulary, tokens) == text
        assert await given.prompt_tokens(text, add_special=False) == tokens, "this vocabulary adds nothing"
        assert not {token(words.vocabulary, one) for one in (CHANNEL, "<|im_end|>")} & set(tokens)


async def test_a_harmless_conversation_has_the_tokens_that_llama_cpp_makes_of_its_text(words: Words) -> None:
    tokens = (await words.chat_prompt([{"role": "user", "content": "the and"}], None, 2)).tokens
    whole = f"{CHANNEL}the and<|im_end|>{THINK}"
    assert tokens == words.vocabulary.tokenize(whole, add_special=False, parse_special=True)


async def test_the_template_for_tools_is_used_when_there_are_tools(words: Words) -> None:
    messages = [{"role": "user", "content": "a"}]
    plain = (await words.chat_prompt(messages, None, 2)).tokens
    assert (await words.chat_prompt(messages, None, 2, tools=[])).tokens == plain
    with_tools = (await words.chat_prompt(messages, None, 2, tools=[{"type": "function"}])).tokens
    assert written(words.vocabulary, with_tools) == "T" + written(words.vocabulary, plain)


async def test_white_space_that_a_token_drops_is_dropped_beside_a_spelled_one_too(tmp_path: Path) -> None:
    extra = with_tokens(bpe_vocabulary(), dict.fromkeys(("<unk>", "<s>", "</s>"), CONTROL))
    extra |= {"tokenizer.chat_template": "{% for m in messages %}<|im_start|>\n {{ m.content }}<|im_end|>{% endfor %}"}
    opened = open_words("m", tiny_llama(tmp_path / "phi.gguf", n_layers=1, name="Phi-3-tiny", extra=extra))
    try:
        assert "<|im_start|>" in opened.vocabulary.strips_right
        for text in ("a", "a<|im_end|>b"):
            tokens = (await opened.chat_prompt([{"role": "user", "content": text}], None, 2)).tokens
            assert written(opened.vocabulary, tokens) == f"<|im_start|>{text}<|im_end|>"
    finally:
        opened.vocabulary.close()


@pytest.mark.parametrize("text", ["x<|x|>y", "a <|x|> the", "<|x|>", "<|x|><|x|>the"])
def test_a_cut_text_gets_no_space_that_nobody_wrote(tmp_path: Path, text: str) -> None:
    extra = with_tokens(spm_vocabulary(), {"<|x|>": USER_DEFINED})
    vocabulary = Vocabulary(tiny_llama(tmp_path / "spm.gguf", n_layers=1, extra=extra))
    try:
        tokens = vocabulary.tokenize_parts(vocabulary.control.parts(text))
        assert token(vocabulary, "<s>") == tokens[0]
        assert b"".join(map(vocabulary.piece, tokens)).decode() == " " + text
        [x] = vocabulary.tokenize("<|x|>", add_special=False, parse_special=False)
        assert x not in tokens
        joined = [Part("the", special=False), Part("the", special=False, joined=True)]
        assert b"".join(map(vocabulary.piece, vocabulary.tokenize_parts(joined))).decode() == " thethe"
    finally:
        vocabulary.close()


async def test_tools_in_the_templates_variables_are_tools(words: Words) -> None:
    spelled = json.loads(json.dumps([{"type": "function", "function": {"name": CHANNEL}}]))
    with_tools = (await words.chat_prompt([{"role": "user", "content": "a"}], {"tools": spelled}, 2)).tokens
    assert written(words.vocabulary, with_tools).startswith("T")
