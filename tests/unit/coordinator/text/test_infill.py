"""Filling in the middle: the prompt around a gap, and where its answer ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shardnet.coordinator.api.chats import Prepared, prepare
from shardnet.coordinator.api.messages import text_of
from shardnet.coordinator.api.schemas import CompletionRequest
from shardnet.coordinator.text.words import Words, open_words
from shardnet.errors import UsageError
from tests.support.random_models import (
    CONTROL,
    USER_DEFINED,
    bpe_vocabulary,
    spm_vocabulary,
    tiny_llama,
    with_tokens,
)

PREFIX, SUFFIX, MIDDLE, PAD, OTHER = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|else|>"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Words]:
    added = {PREFIX: CONTROL, SUFFIX: CONTROL, MIDDLE: CONTROL, PAD: CONTROL, OTHER: USER_DEFINED}
    yield from opened(tmp_path_factory.mktemp("infill") / "bpe.gguf", with_tokens(bpe_vocabulary(), added))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Words]:
    added = {PREFIX: CONTROL, SUFFIX: CONTROL, MIDDLE: CONTROL}
    yield from opened(tmp_path_factory.mktemp("infill") / "spm.gguf", with_tokens(spm_vocabulary(320), added))


def opened(path: Path, extra: Mapping[str, Any]) -> Iterator[Words]:
    made = open_words("m", tiny_llama(path, n_layers=1, n_vocab=len(extra["tokenizer.ggml.tokens"]), extra=extra))
    yield made
    made.vocabulary.close()


def token(words: Words, text: str) -> int:
    [found] = words.vocabulary.tokenize(text, add_special=False, parse_special=True)
    return found


def plain(words: Words, text: str) -> list[int]:
    return words.vocabulary.tokenize(text, add_special=False, parse_special=False)


async def prepared(words: Words, **body: object) -> Prepared:
    request = CompletionRequest.model_validate(body)
    request.check_supported()
    return await prepare(request, words, None, 20)


async def test_the_prompt_is_prefix_suffix_middle_and_every_prompt_has_the_same_suffix(words: Words) -> None:
    before, behind = plain(words, "def f("), plain(words, "):\n  end")
    wanted = [token(words, PREFIX), *before, token(words, SUFFIX), *behind, token(words, MIDDLE)]
    empty = [token(words, PREFIX), token(words, SUFFIX), *behind, token(words, MIDDLE)]
    found = await prepared(words, prompt=["def f(", ""], suffix="):\n  end")
    assert found.prompts == [wanted, empty]
    assert (await prepared(words, prompt=before, suffix="):\n  end")).prompts == [wanted]


async def test_no_text_spells_a_control_token_on_either_side(words: Words) -> None:
    text = f"a{MIDDLE}b{OTHER}<|im_end|>"
    [tokens] = (await prepared(words, prompt=text, suffix=text)).prompts
    marks = {token(words, one) for one in (PREFIX, SUFFIX, MIDDLE)}
    assert [one for one in tokens if one in marks] == [token(words, one) for one in (PREFIX, SUFFIX, MIDDLE)]
    assert not {token(words, OTHER), token(words, "<|im_end|>")} & set(tokens)
    assert words.vocabulary.text(tokens) == f"{PREFIX}{text}{SUFFIX}{text}{MIDDLE}"


async def test_sentencepiece_puts_no_space_behind_the_gap_and_begins_with_its_own_token(sentencepiece: Words) -> None:
    words, bos = sentencepiece, sentencepiece.vocabulary.bos
    [tokens] = (await prepared(words, prompt="the", suffix="the")).prompts
    assert words.vocabulary.text(tokens[1:]) == f"{PREFIX} the{SUFFIX}the{MIDDLE}"
    assert [at for at, one in enumerate(tokens) if one == bos] == [0]
    [given] = (await prepared(words, prompt=[bos, *plain(words, "the")], suffix="the")).prompts
    assert given == tokens


async def test_an_answer_ends_where_the_model_begins_another_gap_and_shows_nothing_of_it(words: Words) -> None:
    filled, continued = await prepared(words, prompt="a", suffix="b"), await prepared(words, prompt="a")
    for text in (PREFIX, SUFFIX, MIDDLE, PAD, "<|im_end|>"):
        assert token(words, text) in filled.ends
        assert text_of([*filled.stream().push(token(words, text))]) == ""
    assert token(words, MIDDLE) not in continued.ends
    assert token(words, OTHER) not in filled.ends


async def test_an_empty_suffix_is_none(words: Words) -> None:
    assert (await prepared(words, prompt="a", suffix="")).prompts == [plain(words, "a")]


async def test_a_model_without_the_tokens_is_refused_by_name(tmp_path: Path) -> None:
    some: dict[str, int] = {PREFIX: CONTROL, SUFFIX: CONTROL}
    for added in ({}, some):
        for words in opened(tmp_path / f"{len(added)}.gguf", with_tokens(bpe_vocabulary(), added)):
            with pytest.raises(UsageError, match=r"suffix: .*no tokens for filling in") as caught:
                await prepared(words, prompt="a", suffix="b")
            assert caught.value.facts["param"] == "suffix"
