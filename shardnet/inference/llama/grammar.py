"""The grammars of sequences; GBNF by llama.cpp's own sampler (for Lark's syntax see `lark.py`).

Its `accept` is for tokens that the grammar permits, so each token is asked about first.

Source: llama.cpp's llama-grammar.cpp and grammars/README.md.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from typing import Any, Protocol

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from shardnet.errors import EngineError, UsageError
from shardnet.inference.llama.lark import LarkGrammar, TokenTable, table_of
from shardnet.messages import LARK
from shardnet.token_arrays import common_length

CANDIDATE: Any = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])  # llama_token_data
MAX_NESTING = 256
"""Brackets within brackets that are supported: llama.cpp parses them by recursion, and the engine gives it stack for far more than these."""


def check_grammar(text: str) -> None:
    """Raises: UsageError for a grammar that is empty, or nested deeper than is supported."""
    if not text.strip() or "\0" in text:
        raise UsageError("the grammar is empty, or holds a zero byte: give a GBNF text with a rule named root")
    depth = deepest = 0
    for char in text:
        if char == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif char == ")":
            depth = max(0, depth - 1)
    if deepest > MAX_NESTING:
        raise UsageError(
            f"the grammar nests {deepest} brackets, where {MAX_NESTING} are allowed: give inner parts names"
        )


class Grammar:
    """A parsed grammar and how far one sequence has come in it. Call `close`.

    Raises: UsageError if the text is not a grammar that llama.cpp takes.
    """

    def __init__(self, vocab: Any, n_vocab: int, text: str) -> None:
        check_grammar(text)
        self.text = text
        self._fresh = llama_cpp.llama_sampler_init_grammar(vocab, text.encode(), b"root")
        if not self._fresh:
            raise UsageError(
                "llama.cpp does not take the grammar: it must be GBNF with a rule named root and no left recursion"
            )
        self._state = llama_cpp.llama_sampler_clone(self._fresh)
        self._accepted = array("i")
        self._one: NDArray[Any] = np.zeros(1, dtype=CANDIDATE)
        self._all: NDArray[Any] = np.zeros(n_vocab, dtype=CANDIDATE)

    def close(self) -> None:
        """Free llama.cpp's side of it."""
        for sampler in (self._state, self._fresh):
            if sampler:
                llama_cpp.llama_sampler_free(sampler)
        self._state = self._fresh = None

    def follow(self, tokens: Sequence[int]) -> None:
        """Stand where `tokens`, the sequence since its prompt, have led; starts over where they differ from what was followed so far.

        Raises: EngineError if the grammar does not permit them.
        """
        tokens = array("i", tokens)
        known = len(self._accepted)
        if common_length(tokens, self._accepted) < known:
            llama_cpp.llama_sampler_free(self._state)
            self._state = llama_cpp.llama_sampler_clone(self._fresh)
            self._accepted, known = array("i"), 0
        for token in tokens[known:]:
            if not self.permits(token):
                raise EngineError("the sequence's tokens do not follow the grammar that came with the step")
            llama_cpp.llama_sampler_accept(self._state, token)
            self._accepted.append(token)

    def permits(self, token: int) -> bool:
        """True if `token` may come next."""
        if not 0 <= token < len(self._all):
            return False
        self._one["id"], self._one["logit"] = token, 0.0
        self._apply(self._one)
        return bool(self._one["logit"][0] == 0.0)

    def mask(self, scores: NDArray[np.float32]) -> None:
        """Set the scores of tokens that may not come next to minus infinity."""
        self._all["id"] = np.arange(len(self._all), dtype=np.int32)
        self._all["logit"] = 0.0
        self._apply(self._all)
        scores[self._all["logit"] != 0.0] = -np.inf

    def _apply(self, candidates: NDArray[Any]) -> None:
        array = llama_cpp.llama_token_data_array(
            data=ctypes.cast(candidates.ctypes.data, ctypes.POINTER(llama_cpp.llama_token_data)),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        llama_cpp.llama_sampler_apply(self._state, ctypes.byref(array))


class GrammarState(Protocol):
    """A grammar, and how far one sequence has come in it."""

    text: str

    def close(self) -> None: ...

    def follow(self, tokens: Sequence[int]) -> None: ...

    def permits(self, token: int) -> bool: ...

    def mask(self, scores: NDArray[np.float32]) -> None: ...


class Grammars:
    """The grammars of a model's sequences, of either kind."""

    def __init__(self) -> None:
        self._grammars: dict[str, GrammarState] = {}
        self._table: TokenTable | None = None

    def of(self, sequence_id: str, vocab: Any, n_vocab: int, text: str) -> GrammarState:
        """Returns: a sequence's grammar, as it stands; a new one if it had none of this text. Raises: UsageError as the two kinds do."""
        grammar = self._grammars.get(sequence_id)
        if grammar is None or grammar.text != text:
            self.drop(sequence_id)
            grammar = self._grammars[sequence_id] = self._make(vocab, n_vocab, text)
        return grammar

    def _make(self, vocab: Any, n_vocab: int, text: str) -> GrammarState:
        if not text.startswith(LARK):
            return Grammar(vocab, n_vocab, text)
        if self._table is None:
            self._table = table_of(vocab, n_vocab)
        return LarkGrammar(self._table, text)

    def drop(self, sequence_id: str) -> None:
        """Free a sequence's grammar; nothing happens if it has none."""
        grammar = self._grammars.pop(sequence_id, None)
        if grammar is not None:
            grammar.close()

    def drop_all(self) -> None:
        """Free them all, and what was made of the vocabulary."""
        for sequence_id in list(self._grammars):
            self.drop(sequence_id)
        self._table = None
