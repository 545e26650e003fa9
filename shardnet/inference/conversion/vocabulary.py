"""A checkpoint's vocabulary as keys of a GGUF: tokens, merges, the tokens that begin and end a text, and the chat templates.

Which token is which comes from `gguf.SpecialVocab`. Refuses to know how tokenizer files are built (`tokenizer_json`, `sentencepiece_model`).
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import gguf

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.json_files import is_count, read_json_object
from shardnet.inference.conversion.sentencepiece_model import TOKENIZER_MODEL, read_sentencepiece_model
from shardnet.inference.conversion.templates import (
    CHAT_TEMPLATE,
    MORE_TEMPLATES,
    OLDER_CHAT_TEMPLATE,
    read_chat_templates,
)
from shardnet.inference.conversion.tokenizer_json import (
    TOKENIZER_JSON,
    added_tokens,
    adds_space,
    byte_level_vocabulary,
    is_byte_level,
    piece_vocabulary,
    read_tokenizer_json,
)
from shardnet.inference.conversion.tokens import AddedToken, Vocabulary

TOKENIZER_CONFIG = "tokenizer_config.json"
ADDED_TOKENS = "added_tokens.json"
MAX_CONFIG_BYTES = 64 << 20


_STRIPPING_NAMES = re.compile(r"phi-?3", re.IGNORECASE)
_STRIPPING_NEEDS = frozenset({"</s>", "<unk>", "<s>", "<|endoftext|>"})


def vocabulary_files(folder: Path) -> tuple[Path, ...]:
    """Returns: the files of a checkpoint that its vocabulary is made of."""
    names = (TOKENIZER_JSON, TOKENIZER_MODEL, TOKENIZER_CONFIG, ADDED_TOKENS, CHAT_TEMPLATE, OLDER_CHAT_TEMPLATE)
    more = sorted((folder / MORE_TEMPLATES).glob("*.jinja"))
    return (*(folder / name for name in names if (folder / name).is_file()), *more)


def put_vocabulary(writer: Any, folder: Path, n_rows: int) -> None:
    """Add a vocabulary's keys, and the model's name, to a `GGUFWriter`.

    Args: folder: also gives the name. n_rows: rows of the embedding; those without a token get one that is never used.
    Raises: CheckpointError, UsageError if there is no tokenizer, or one that llama.cpp cannot be given.
    """
    config = _optional(folder / TOKENIZER_CONFIG)
    vocabulary = _read(folder, config, n_rows)
    special = _special(folder, n_rows, load_merges=vocabulary.model == "gpt2")
    special.chat_template = read_chat_templates(folder, config)
    if (folder / TOKENIZER_JSON).is_file():
        # A tokenizer.json that puts nothing there means it; llama.cpp's own defaults would put something.
        special.add_special_token = {"bos": False, "eos": False} | special.add_special_token
    folder_name = os.fsencode(folder.resolve().name).decode(errors="replace")  # one that is no UTF-8 fits no GGUF
    writer.add_name(_name(folder_name, vocabulary))
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types([int(kind) for kind in vocabulary.kinds])
    if vocabulary.adds_space is not None:
        writer.add_add_space_prefix(vocabulary.adds_space)
    special.add_to_gguf(writer, quiet=True)


def _name(name: str, vocabulary: Vocabulary) -> str:
    """Returns: the model's name, by which llama.cpp decides whether special tokens swallow the spaces behind them.

    It looks for "phi-3" and "phi3", and does not open a file with such a name that lacks one of Phi-3's tokens (src/llama-vocab.cpp).
    """
    strips = vocabulary.strips_right and set(vocabulary.tokens) >= _STRIPPING_NEEDS
    if strips and not _STRIPPING_NAMES.search(name):
        return f"{name} (Phi-3)"
    return name if strips else _STRIPPING_NAMES.sub("Phi 3", name)


def _read(folder: Path, config: dict[str, Any], n_rows: int) -> Vocabulary:
    """tokenizer.json decides how text is cut; scores come from tokenizer.model where there is one."""
    path, model = folder / TOKENIZER_JSON, folder / TOKENIZER_MODEL
    content = read_tokenizer_json(path) if path.is_file() else None
    if content is not None and is_byte_level(content):
        return byte_level_vocabulary(content, n_rows, path)
    if model.is_file():
        vocabulary = read_sentencepiece_model(model, n_rows)
        for token in _added_beside(folder, config):
            vocabulary.add(token)
        if content is not None:
            for token in added_tokens(content, path):
                vocabulary.add(token)
            vocabulary.adds_space = adds_space(content)
        return vocabulary
    if content is not None:
        return piece_vocabulary(content, n_rows, path)
    raise CheckpointError(
        f"{folder} has no tokenizer: {TOKENIZER_JSON} or {TOKENIZER_MODEL} is needed beside the weights"
    )


def _added_beside(folder: Path, config: dict[str, Any]) -> list[AddedToken]:
    """Returns: what versions of transformers before 5 write beside tokenizer.model."""
    path = folder / ADDED_TOKENS
    tokens = []
    for text, number in _optional(path).items():
        if not is_count(number):
            raise CheckpointError(f"{path} is damaged: token {text!r} has the number {number!r}")
        tokens.append(AddedToken(number, text, is_special=False))
    decoder = config.get("added_tokens_decoder") or {}
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        match entry:
            case {"content": str(text)} if str(number).isdecimal():
                tokens.append(AddedToken(int(number), text, entry.get("special") is True, entry.get("rstrip") is True))
            case _:
                raise CheckpointError(f"{folder / TOKENIZER_CONFIG} is damaged: added token {number} is {entry!r}")
    return tokens


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path, MAX_CONFIG_BYTES) if path.exists() else {}


def _special(folder: Path, n_rows: int, *, load_merges: bool) -> Any:
    """Returns: `gguf.SpecialVocab` of a folder whose files were read before. It checks little: whatever it trips over is damage."""
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it warns of what nobody can do anything about
    try:
        special = gguf.SpecialVocab(folder, load_merges=load_merges, n_vocab=n_rows)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"config.json or the tokenizer files in {folder} are damaged ({error}): fetch them again"
        ) from error
    if load_merges and not special.merges:
        raise CheckpointError(f"{folder / TOKENIZER_JSON} has no merges: the model could read single bytes only")
    return special
