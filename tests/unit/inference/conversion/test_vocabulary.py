"""Tokens, special tokens and chat templates of a checkpoint, wherever they are kept, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardnet.errors import CheckpointError, ShardnetError
from shardnet.inference.conversion.tokens import Kind
from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.opening import open_model
from tests.support.whole_checkpoints import (
    N_VOCAB,
    TEMPLATE,
    Content,
    added_token,
    byte_level_tokenizer,
    piece_tokenizer,
    write_model,
)


def edited(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def kinds(header: GgufHeader) -> list[int]:
    return list(header.get("tokenizer.ggml.token_type"))


def test_every_row_of_the_embedding_has_a_token(tmp_path: Path) -> None:
    header = open_model(write_model(tmp_path / "m"))
    tokens = header.get("tokenizer.ggml.tokens")
    assert len(tokens) == len(kinds(header)) == N_VOCAB
    assert tokens[:3] == ["<unk>", "<s>", "</s>"]
    assert kinds(header)[3] == Kind.CONTROL
    assert tokens[-1] == f"[PAD{N_VOCAB - 1}]"
    assert kinds(header)[-1] == Kind.UNUSED
    assert header.get("tokenizer.ggml.merges")[0] == "Ġ t"


def test_added_tokens_are_text_unless_they_steer_and_one_without_a_row_is_left_out(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer["added_tokens"] += [
        added_token(280, "def\u2581f", special=False),
        added_token(281, "<|tool|>", special=False),
        added_token(N_VOCAB, "<image>", special=False),
    ]
    header = open_model(write_model(tmp_path / "m", tokenizer=tokenizer))
    assert header.get("tokenizer.ggml.tokens")[280] == "def f"
    assert kinds(header)[280:282] == [Kind.USER_DEFINED, Kind.CONTROL]
    assert len(kinds(header)) == N_VOCAB


def test_pieces_get_the_rank_of_their_merge_as_score(tmp_path: Path) -> None:
    header = open_model(write_model(tmp_path / "m", "gemma3_text", tokenizer=piece_tokenizer()))
    tokens, scores = header.get("tokenizer.ggml.tokens"), header.get("tokenizer.ggml.scores")
    by_token = dict(zip(tokens, scores, strict=True))
    assert by_token["\u2581t"] == 0.0
    assert by_token["\u2581the"] == -2.0
    assert kinds(header)[tokens.index("<0x41>")] == Kind.BYTE
    assert header.get("tokenizer.ggml.add_space_prefix") is False


@pytest.mark.parametrize(
    ("name", "strips", "has_all", "wanted"),
    [
        ("mine", True, True, "mine (Phi-3)"),
        ("Phi-3-mini", True, True, "Phi-3-mini"),
        ("Phi-3-mini", False, True, "Phi 3-mini"),
        ("my-phi3", True, False, "my-Phi 3"),
        ("mine", False, False, "mine"),
    ],
)
def test_the_name_says_whether_special_tokens_swallow_spaces_since_llama_cpp_goes_by_it(
    tmp_path: Path, name: str, strips: bool, has_all: bool, wanted: str
) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer["added_tokens"][2]["rstrip"] = strips
    if has_all:
        tokenizer["added_tokens"].append(added_token(280, "<|endoftext|>"))
    assert open_model(write_model(tmp_path / name, tokenizer=tokenizer)).get("general.name") == wanted


def test_what_is_put_around_a_text_is_what_the_tokenizer_says(tmp_path: Path) -> None:
    plain = open_model(write_model(tmp_path / "a"))
    begun = open_model(write_model(tmp_path / "b", tokenizer=byte_level_tokenizer(bos="<s>")))
    assert [header.get("tokenizer.ggml.add_bos_token") for header in (plain, begun)] == [False, True]
    folder = write_model(tmp_path / "c", tokenizer=byte_level_tokenizer(bos="<s>"))
    edited(folder, "tokenizer_config.json", add_bos_token=False)
    assert open_model(folder).get("tokenizer.ggml.add_bos_token") is False


def test_chat_templates_are_found_in_every_place(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    assert open_model(folder).get("tokenizer.chat_template") == TEMPLATE
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("{{ tools }}")
    both = open_model(folder)
    assert both.get("tokenizer.chat_template") == TEMPLATE
    assert both.get("tokenizer.chat_template.tool_use") == "{{ tools }}"
    (more / "tool_use.jinja").unlink()
    (folder / "chat_template.jinja").unlink()
    assert open_model(folder).get("tokenizer.chat_template") is None
    edited(folder, "tokenizer_config.json", chat_template="{{ of the config }}")
    assert open_model(folder).get("tokenizer.chat_template") == "{{ of the config }}"
    named = [{"name": "default", "template": "one"}, {"name": "rag", "template": "two"}]
    edited(folder, "tokenizer_config.json", chat_template=named)
    listed = open_model(folder)
    assert listed.get("tokenizer.chat_template") == "one"
    assert listed.get("tokenizer.chat_template.rag") == "two"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "older"}))
    assert open_model(folder).get("tokenizer.chat_template") == "older"


def changed(**changes: Any) -> Content:
    return byte_level_tokenizer() | changes


def with_model(**changes: Any) -> Content:
    tokenizer = byte_level_tokenizer()
    tokenizer["model"] |= changes
    return tokenizer


REFUSED: list[tuple[Content, str]] = [
    (with_model(type="Unigram"), "of the kind 'Unigram', which is not taken"),
    (with_model(type="WordPiece"), "of the kind 'WordPiece'"),
    (byte_level_tokenizer(r"\w+"), r"cuts text by '\\\\w\+', which is none of the ways that are known"),
    (byte_level_tokenizer(ignore_merges=True), "with ignore_merges, which is none of the ways"),
    (changed(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), "puts a space before every text"),
    (changed(pre_tokenizer={"type": "Punctuation"}), "by a step 'Punctuation' of a kind that is not taken"),
    (changed(normalizer={"type": "Lowercase"}), "changes text by 'Lowercase' before it is cut"),
    (with_model(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    (with_model(vocab={"a": N_VOCAB}), f"a token {N_VOCAB}, and the embedding {N_VOCAB} rows"),
    (with_model(vocab=["a"]), "has no vocabulary"),
    (with_model(merges=[]), "has no merges"),
    (with_model(merges=[7]), "damaged"),
    (changed(added_tokens=["x"]), "an added token is 'x'"),
    (piece_tokenizer() | {"normalizer": {"type": "Lowercase"}}, "changes text by 'Lowercase'"),
    (piece_tokenizer() | {"normalizer": {"type": [1]}}, r"changes text by \[1\]"),
]


@pytest.mark.parametrize(("tokenizer", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_a_tokenizer_that_llama_cpp_cannot_be_given_is_refused(
    tokenizer: Content, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        open_model(write_model(tmp_path / "m", tokenizer=tokenizer))


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        open_model(folder)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 40, b"\x0a\x04\x0a\x02\xc3\x28", b"\x0a\x7f", b"{}"])
def test_a_tokenizer_model_that_is_none_is_refused(data: bytes, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(data)
    with pytest.raises(CheckpointError, match="is no SentencePiece model"):
        open_model(folder)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer_config.json", '{"chat_template": 7}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"bos_token": {"content": 7}, "added_tokens_decoder": 7}'),
        ("tokenizer.json", "null"),
        ("tokenizer.json", '{"model": 7}'),
        ("chat_template.json", '{"chat_template": {}}'),
    ],
)
def test_damage_beside_the_weights_is_never_a_traceback(file: str, text: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "chat_template.jinja").unlink()
    (folder / file).write_text(text)
    try:
        open_model(folder)
    except ShardnetError as error:
        assert str(folder) in str(error)  # noqa: PT017
