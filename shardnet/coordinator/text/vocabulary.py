"""A model's vocabulary, by llama.cpp's own tokenizer, opened from `tokenizer.gguf` without any weights.

The file is one that a manifest names and whose hash was checked: llama.cpp is never shown anything else here.
Prompts are tokenized in a thread; single pieces, some microseconds each, are looked up directly.

Source: llama.h (`llama_tokenize`, `llama_token_to_piece`, `llama_vocab_fim_pre`) of the llama.cpp that llama-cpp-python 0.3.36 carries.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal

import llama_cpp

from shardnet.coordinator.text.control import ControlTokens, Part
from shardnet.coordinator.text.infill import InfillTokens
from shardnet.errors import EngineError
from shardnet.inference.llama.model import LlamaModel

SPECIAL = int(llama_cpp.LLAMA_TOKEN_ATTR_CONTROL) | int(llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN)
DEFINED = int(llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED)
STRIPS_RIGHT = int(llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP)
ModelPooling = Literal["mean", "cls", "last", "rank"]
POOLINGS: dict[str, ModelPooling] = {"1": "mean", "2": "cls", "3": "last", "4": "rank"}
"""`llama_pooling_type`, as metadata says it. 0, none at all, is as good as nothing here: one vector is wanted."""
_WINDOW = 1 << 16
_BEFORE = "\n"
"""Stands before a text whose beginning is in the middle of a line: the vocabulary then puts its space before this."""


class Vocabulary:
    """Tokens of one model. Opening it takes some tenths of a second: do it in a thread.

    Raises: EngineError if llama.cpp does not open the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._model = LlamaModel(path, vocab_only=True)
        self._vocab = self._model.vocab
        self.n_vocab = self._model.n_vocab
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))
        self.adds_eos = bool(llama_cpp.llama_vocab_get_add_eos(self._vocab))
        self.bos = int(llama_cpp.llama_vocab_bos(self._vocab))
        self.eos = int(llama_cpp.llama_vocab_eos(self._vocab))
        self.pooling = POOLINGS.get(self._model.text_of(f"{self._model.architecture}.pooling_type") or "")
        """How the model wants its embeddings pooled; None if it does not say."""
        self.chat_template = self._template(None)
        self.tool_template = self._template(b"tool_use")
        """For conversations with tools, where the model has one of its own."""
        tokens = range(self.n_vocab)
        self.ends = frozenset(token for token in tokens if llama_cpp.llama_vocab_is_eog(self._vocab, token))
        kinds = {token: int(llama_cpp.llama_vocab_get_attr(self._vocab, token)) for token in tokens}
        self._special = frozenset(token for token, kind in kinds.items() if kind & SPECIAL)
        self._defined = frozenset(token for token, kind in kinds.items() if kind & DEFINED) - self._special
        self._strips_right = frozenset(token for token, kind in kinds.items() if kind & STRIPS_RIGHT)
        self._pieces: dict[int, bytes] = {}

    def _template(self, name: bytes | None) -> str | None:
        template = llama_cpp.llama_model_chat_template(self._model.pointer, name)
        return template.decode(errors="replace") if template else None

    def close(self) -> None:
        """Free it."""
        self._model.close()

    def is_end(self, token: int) -> bool:
        """True for tokens that end an answer."""
        return token in self.ends

    def text_of(self, token: int) -> str:
        """Returns: how the vocabulary writes a token, control tokens too; empty for none."""
        if not 0 <= token < self.n_vocab:
            return ""
        return str(llama_cpp.llama_vocab_get_text(self._vocab, token).decode(errors="replace"))

    def piece(self, token: int) -> bytes:
        """Returns: the bytes that a token adds to the text; none for control tokens. A character may be spread over several tokens."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._make_piece(token)
        return known

    def control_text(self, token: int) -> str:
        """Returns: how a control token is written; empty for other tokens."""
        return self.text_of(token) if token in self._special else ""

    @cached_property
    def control_ids(self) -> dict[str, int]:
        """Returns: the control tokens by their texts."""
        return {text: token for token in self._special if (text := self.text_of(token))}

    def text(self, tokens: Iterable[int]) -> str:
        """Returns: what tokens spell, control tokens as the vocabulary writes them."""
        return b"".join(self.piece(one) or self.text_of(one).encode() for one in tokens).decode(errors="replace")

    def _make_piece(self, token: int) -> bytes:
        if not 0 <= token < self.n_vocab:
            return b""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = int(llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, False))
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    @cached_property
    def control_texts(self) -> frozenset[str]:
        """Returns: texts of tokens that are only looked for with `parse_special`."""
        return frozenset(map(self.text_of, self._special)) - {""}

    @cached_property
    def defined_texts(self) -> frozenset[str]:
        """Returns: texts of tokens that llama.cpp looks for in any text (USER_DEFINED)."""
        return frozenset(map(self.text_of, self._defined)) - {""}

    @cached_property
    def strips_right(self) -> frozenset[str]:
        """Returns: texts of tokens behind which llama.cpp drops white space."""
        return frozenset(map(self.text_of, self._strips_right)) - {""}

    @cached_property
    def control(self) -> ControlTokens:
        """Returns: its control tokens, as far as no template tells more."""
        return ControlTokens(self.control_texts, self.defined_texts)

    @cached_property
    def infill(self) -> InfillTokens | None:
        """Returns: its tokens for filling in the middle; None if it lacks one of the three that this takes."""
        prefix, suffix, middle, *others = (
            int(token_of(self._vocab))
            for token_of in (
                llama_cpp.llama_vocab_fim_pre,
                llama_cpp.llama_vocab_fim_suf,
                llama_cpp.llama_vocab_fim_mid,
                llama_cpp.llama_vocab_fim_pad,
                llama_cpp.llama_vocab_fim_rep,
                llama_cpp.llama_vocab_fim_sep,
            )
        )
        if min(prefix, suffix, middle) < 0:
            return None
        return InfillTokens(prefix, suffix, middle, frozenset({prefix, suffix, middle, *others} - {-1}))

    @cached_property
    def _adds_space(self) -> bool:
        """SentencePiece: a text begins with a space that nobody wrote."""
        first = self.tokenize("a", add_special=False, parse_special=False)
        return bool(first) and self.piece(first[0]).startswith(b" ")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Returns: the text's tokens.

        Args:
            add_special: let the vocabulary put its begin-of-text token in front, where it wants one.
            parse_special: text like `<|im_end|>` becomes the control token.

        Raises: EngineError if llama.cpp fails.
        """
        raw = text.encode("utf-8", errors="replace")
        size = len(raw) + 16
        while True:
            buffer = (llama_cpp.llama_token * size)()
            count = int(llama_cpp.llama_tokenize(self._vocab, raw, len(raw), buffer, size, add_special, parse_special))
            if count >= 0:
                return _as_list(memoryview(buffer).cast("B").cast("i")[:count])
            if -count <= size:
                raise EngineError(f"llama.cpp cannot tokenize a text of {len(raw)} bytes")
            size = -count

    def tokenize_parts(self, parts: Iterable[Part], *, add_special: bool = True) -> list[int]:
        """Returns: the tokens of a prompt, with one begin-of-text token in front where the vocabulary wants one and `add_special` is set."""
        tokens: list[int] = []
        for part in parts:
            if part.joined and self._adds_space:
                tokens += self._tokenize_joined(part)
            else:
                tokens += self.tokenize(part.text, add_special=False, parse_special=part.special)
        if add_special and self.adds_bos and self.bos >= 0 and (not tokens or tokens[0] != self.bos):
            tokens.insert(0, self.bos)
        return tokens

    def _tokenize_joined(self, part: Part) -> list[int]:
        before = self.tokenize(_BEFORE, add_special=False, parse_special=False)
        tokens = self.tokenize(_BEFORE + part.text, add_special=False, parse_special=part.special)
        if tokens[: len(before)] == before:
            return tokens[len(before) :]
        return self.tokenize(part.text, add_special=False, parse_special=part.special)


def _as_list(tokens: memoryview) -> list[int]:
    """Returns: the tokens; of a long prompt in pieces, so that other threads may run in between."""
    made: list[int] = []
    for at in range(0, len(tokens), _WINDOW):
        made += tokens[at : at + _WINDOW].tolist()
    return made
