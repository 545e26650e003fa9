"""tokenizer.json: byte-level pairs as GPT-2 has them, or SentencePiece's pairs over characters. Other kinds are refused by name.

Refuses to know which tokens begin and end a text.

Source: tokenizers 0.23, the serde forms of its models, normalizers and pre-tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.json_files import is_count, read_json_object
from shardnet.inference.conversion.pretokenizers import pre_tokenizer_name
from shardnet.inference.conversion.tokens import (
    SPACE,
    AddedToken,
    Kind,
    Vocabulary,
    check_row,
    empty_vocabulary,
    kind_of_piece,
)

TOKENIZER_JSON = "tokenizer.json"
MAX_TOKENIZER_BYTES = 200 << 20

Content = dict[str, Any]


def read_tokenizer_json(path: Path) -> Content:
    """Returns: the file's content, of which model, vocabulary and added tokens are what they should be.

    Raises: UsageError, CheckpointError.
    """
    content = read_json_object(path, MAX_TOKENIZER_BYTES)
    model = content.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE":
        raise CheckpointError(f"{path} is a tokenizer of the kind {kind!r}, which is not taken: BPE is")
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not vocabulary or not all(map(is_count, vocabulary.values())):
        raise CheckpointError(f"{path} is damaged: it has no vocabulary of texts and numbers")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise CheckpointError(f"{path} has {key} = {model[key]!r}, which llama.cpp does not know")
    return content


def is_byte_level(content: Content) -> bool:
    """Returns: whether pairs are merged over bytes spelled as letters, and not over characters."""
    decoder = content.get("decoder")
    return any(step.get("type") == "ByteLevel" for step in _laid_open(decoder, "decoders"))


def added_tokens(content: Content, where: Path) -> list[AddedToken]:
    """Returns: the added tokens of a tokenizer.json. Raises: CheckpointError."""
    found = content.get("added_tokens") or []
    if not isinstance(found, list):
        raise CheckpointError(f"{where} is damaged: its added tokens are no list")
    tokens = []
    for entry in found:
        match entry:
            case {"id": int(number), "content": str(text)}:
                tokens.append(AddedToken(number, text, entry.get("special") is True, entry.get("rstrip") is True))
            case _:
                raise CheckpointError(f"{where} is damaged: an added token is {entry!r}")
    return tokens


def byte_level_vocabulary(content: Content, n_rows: int, where: Path) -> Vocabulary:
    """Returns: tokens and kinds of a byte-level tokenizer.json, padded to the embedding's rows. Raises: CheckpointError."""
    _check_normalizer(content, where, {"NFC"})
    steps = _laid_open(content.get("pre_tokenizer"), "pretokenizers")
    ignores_merges = content["model"].get("ignore_merges") is True
    vocabulary = empty_vocabulary("gpt2", pre_tokenizer_name(steps, str(where), ignores_merges=ignores_merges), n_rows)
    for text, number in content["model"]["vocab"].items():
        check_row(number, n_rows, str(where))
        vocabulary.tokens[number], vocabulary.kinds[number] = text, Kind.NORMAL
    for token in added_tokens(content, where):
        vocabulary.add(token)
    return vocabulary


def piece_vocabulary(content: Content, n_rows: int, where: Path) -> Vocabulary:
    """Returns: tokens, kinds and scores of SentencePiece's pairs as tokenizer.json holds them. Raises: CheckpointError.

    A score says which pair llama.cpp merges first, as the rank of a merge does here: so the score of a piece is the rank of the first merge
    that makes it, below zero.
    """
    model = content["model"]
    if model.get("byte_fallback") is not True:
        raise CheckpointError(
            f"{where} merges pairs neither over bytes nor with byte_fallback, which llama.cpp cannot do"
        )
    _check_normalizer(content, where, {"Replace", "Prepend"})
    _check_pieces_stay_whole(content, where)
    vocabulary = empty_vocabulary("llama", "default", n_rows)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges_of(content, where)):
        ranks.setdefault(left + right, rank)
    for text, number in model["vocab"].items():
        check_row(number, n_rows, str(where))
        vocabulary.tokens[number], vocabulary.kinds[number] = text, kind_of_piece(text)
        vocabulary.scores[number] = -float(ranks.get(text, len(ranks)))
    unknown = model["vocab"].get(str(model.get("unk_token")))
    if unknown is not None:
        vocabulary.kinds[unknown] = Kind.UNKNOWN
    for token in added_tokens(content, where):
        vocabulary.add(token)
    vocabulary.adds_space = adds_space(content)
    return vocabulary


def merges_of(content: Content, where: Path) -> Iterator[tuple[str, str]]:
    """Yield pairs in the order of their rank; older files write a pair as one text. Raises: CheckpointError."""
    merges = content["model"].get("merges")
    if not isinstance(merges, list):
        raise CheckpointError(f"{where} is damaged: it has no list of merges")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        match pair:
            case [str(left), str(right)]:
                yield left, right
            case _:
                raise CheckpointError(f"{where} is damaged: a merge is {merge!r}")


def adds_space(content: Content) -> bool:
    """Returns: whether a space is put before a text."""
    steps = _laid_open(content.get("normalizer"), "normalizers")
    if any(step.get("type") == "Prepend" and step.get("prepend") == SPACE for step in steps):
        return True
    return any(
        step.get("type") == "Metaspace"
        and step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
        for step in _laid_open(content.get("pre_tokenizer"), "pretokenizers")
    )


def _check_normalizer(content: Content, where: Path, allowed: set[str]) -> None:
    for step in _laid_open(content.get("normalizer"), "normalizers"):
        if str(step.get("type")) not in allowed:
            raise CheckpointError(
                f"{where} changes text by {step.get('type')!r} before it is cut, which llama.cpp does not"
            )


def _check_pieces_stay_whole(content: Content, where: Path) -> None:
    """Pairs of SentencePiece are merged over the whole text; a split at spaces does nothing once these are written as letters."""
    for step in _laid_open(content.get("pre_tokenizer"), "pretokenizers"):
        match step:
            case {"type": "Metaspace"} if step.get("split") is not True:
                continue
            case {"type": "Split", "pattern": {"String": " "}}:
                continue
        raise CheckpointError(
            f"{where} cuts text by {step.get('type')!r} before pairs are merged, which llama.cpp does not"
        )


def _laid_open(value: Any, key: str) -> list[Content]:
    """Returns: the steps of a normalizer, pre-tokenizer or decoder; those of a sequence in its place."""
    if not isinstance(value, dict):
        return []
    inner = value.get(key)
    return [step for part in inner for step in _laid_open(part, key)] if isinstance(inner, list) else [value]
