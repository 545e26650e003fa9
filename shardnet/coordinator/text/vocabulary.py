"""A model's vocabulary, by llama.cpp's own tokenizer, opened from `tokenizer.gguf` without any weights.

The file is one that a manifest names and whose hash was checked: llama.cpp is never shown anything else here.
Prompts are tokenized in a thread; single pieces, some microseconds each, are looked up directly.

Source: llama.h (`llama_tokenize`, `llama_token_to_piece`) of the llama.cpp that llama-cpp-python 0.3.36 carries.
"""

from __future__ import annotations

import ctypes
import re
from array import array
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import llama_cpp

from shardnet.errors import EngineError
from shardnet.inference.llama.model import LlamaModel

SPECIAL = int(llama_cpp.LLAMA_TOKEN_ATTR_CONTROL) | int(llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN)


class Vocabulary:
    """Tokens of one model. Opening it takes some tenths of a second: do it in a thread.

    Raises: EngineError if llama.cpp does not open the file.
    """

    def __init__(self, path: Path) -> None:
        self._model = LlamaModel(path, vocab_only=True)
        self._vocab = self._model.vocab
        self.n_vocab = self._model.n_vocab
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))
        self.bos = int(llama_cpp.llama_vocab_bos(self._vocab))
        self.eos = int(llama_cpp.llama_vocab_eos(self._vocab))
        template = llama_cpp.llama_model_chat_template(self._model.pointer, None)
        self.chat_template: str | None = template.decode(errors="replace") if template else None
        tokens = range(self.n_vocab)
        self.ends = frozenset(token for token in tokens if llama_cpp.llama_vocab_is_eog(self._vocab, token))
        self._special = frozenset(
            token for token in tokens if int(llama_cpp.llama_vocab_get_attr(self._vocab, token)) & SPECIAL
        )
        self._pieces: dict[int, bytes] = {}

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
    def special_texts(self) -> re.Pattern[str] | None:
        """Returns: what matches the text of any control token; None if there is none."""
        texts = sorted({self.text_of(token) for token in self._special} - {""}, key=lambda text: (-len(text), text))
        return re.compile("|".join(map(re.escape, texts))) if texts else None

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
                return array("i", bytes(buffer)[: 4 * count]).tolist()
            if -count <= size:
                raise EngineError(f"llama.cpp cannot tokenize a text of {len(raw)} bytes")
            size = -count

    def tokenize_parts(self, parts: Iterable[tuple[str, bool]]) -> list[int]:
        """Returns: the tokens of a rendered chat: `(text, may hold control tokens)`, with one begin-of-text token where the vocabulary wants one."""
        tokens: list[int] = []
        for text, parse_special in parts:
            if text:
                tokens += self.tokenize(text, add_special=False, parse_special=parse_special)
        if self.adds_bos and self.bos >= 0 and (not tokens or tokens[0] != self.bos):
            tokens.insert(0, self.bos)
        return tokens
