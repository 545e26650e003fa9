"""Grammars in Lark's syntax, JSON schemas and regular expressions among them, by llguidance. Knows a vocabulary of llama.cpp's and nothing of models.

llguidance never raises: after an error its matcher permits the end of the text, so each mask is asked for its error before it counts.

Source: llguidance's python/llguidance/_lib.pyi and docs/syntax.md.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from shardnet.errors import EngineError, UsageError

CONTROL = int(llama_cpp.LLAMA_TOKEN_ATTR_CONTROL) | int(llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN)
NOT_TEXT = b"\xff"
"""In front of a control token's name: no text has this byte, so such a token comes only where a grammar names it, as `<|im_end|>` or `<[7]>`."""
MAX_PIECE = 1024
REASON_CHARACTERS = 300
LIMITS: dict[str, Any] = {"max_grammar_size": 200_000, "initial_lexer_fuel": 500_000, "verbose_errors": False}
"""About 50 ms of compiling at most; the steps keep llguidance's own limits, about 15 ms each."""


class TokenTable:
    """A vocabulary as llguidance wants it. Takes about 10 us a token to make, and some 400 bytes."""

    def __init__(self, vocab: Any, n_vocab: int) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper  # 15 ms, which most engines never need

        self._vocab = vocab
        self.n_vocab = n_vocab
        self._buffer = ctypes.create_string_buffer(MAX_PIECE)
        self.ends = frozenset(token for token in range(n_vocab) if llama_cpp.llama_vocab_is_eog(vocab, token))
        self.tokens = [self._piece(token) for token in range(n_vocab)]
        # The names that llguidance's TokenizerWrapper asks for.
        self.eos_token_id = min(self.ends, default=max(0, int(llama_cpp.llama_vocab_eos(vocab))))
        self.bos_token_id = None
        self.special_token_ids: list[int] = []
        with translated_panics():
            self.tokenizer = LLTokenizer(
                TokenizerWrapper(self), n_vocab=n_vocab, eos_token=sorted(self.ends) or [self.eos_token_id]
            )

    def _piece(self, token: int) -> bytes:
        is_control = bool(llama_cpp.llama_vocab_get_attr(self._vocab, token) & CONTROL)
        count = int(llama_cpp.llama_token_to_piece(self._vocab, token, self._buffer, MAX_PIECE, 0, is_control))
        text = self._buffer.raw[:count] if count > 0 else b""
        return NOT_TEXT + text if is_control and text else text

    def __call__(self, text: bytes) -> list[int]:
        """Returns: how the model itself would write a text that the grammar leaves no choice about."""
        size = len(text) + 8
        buffer = (llama_cpp.llama_token * size)()
        count = int(llama_cpp.llama_tokenize(self._vocab, text, len(text), buffer, size, False, False))
        tokens = buffer[: max(0, count)]
        if b"".join(self.tokens[token] for token in tokens) == text:
            return list(tokens)
        # Some vocabularies put a space in front of every text; then byte by byte whatever stands for it.
        return list(self.tokenizer.greedy_tokenize(text.decode(errors="replace"))) if hasattr(self, "tokenizer") else []


class LarkGrammar:
    """A compiled grammar and how far one sequence has come in it.

    Raises: UsageError if llguidance does not take it.
    """

    def __init__(self, table: TokenTable, text: str) -> None:
        from llguidance import LLMatcher, LLParserLimits

        self.text = text
        self._table = table
        with translated_panics():
            grammar = LLMatcher.grammar_from_lark(text)
            self._matcher = LLMatcher(table.tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
            if self._matcher.is_error():
                raise UsageError(f"the grammar is not taken: {reason_of(self._matcher.get_error())}")
        self._accepted: list[int] = []
        self._fed = 0
        """How many of them the matcher has seen: ends of the text behind a whole document are not for it."""

    def close(self) -> None:
        """Free llguidance's side of it."""
        del self._matcher

    def follow(self, tokens: Sequence[int]) -> None:
        """Stand where `tokens`, the sequence since its prompt, have led; goes back to where they differ from what was followed so far.

        Raises: EngineError if the grammar does not permit them.
        """
        tokens = list(tokens)
        known = 0
        for token, accepted in zip(tokens, self._accepted, strict=False):
            if token != accepted:
                break
            known += 1
        with translated_panics():
            if known < self._fed:
                self._matcher.rollback(self._fed - known)
                self._fed = known
            del self._accepted[known:]
            for token in tokens[known:]:
                if not self.permits(token):
                    raise EngineError("the sequence's tokens do not follow the grammar that came with the step")
                if not self._ends_here(token):
                    self._matcher.consume_token(token)
                    self._fed += 1
                self._accepted.append(token)
            self._check()

    def permits(self, token: int) -> bool:
        """True if `token` may come next."""
        if self._ends_here(token):
            return True
        if not 0 <= token < self._table.n_vocab or self._has_ended:
            return False
        with translated_panics():
            return self._matcher.validate_tokens([token]) == 1

    def mask(self, scores: NDArray[np.float32]) -> None:
        """Set the scores of tokens that may not come next to minus infinity."""
        ends = [token for token in self._table.ends if self._ends_here(token)]
        kept = scores[ends]
        if self._has_ended:
            scores[:] = -np.inf
        else:
            with translated_panics():
                packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
                self._check()
            permitted = np.unpackbits(packed, bitorder="little", count=self._table.n_vocab)
            scores[permitted == 0] = -np.inf
        scores[ends] = kept

    @property
    def _has_ended(self) -> bool:
        return len(self._accepted) > self._fed

    def _ends_here(self, token: int) -> bool:
        if token not in self._table.ends:
            return False
        with translated_panics():
            return self._has_ended or bool(self._matcher.is_accepting())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"the grammar cannot be followed any further: {reason_of(self._matcher.get_error())}")


def reason_of(error: str) -> str:
    """Returns: llguidance's own words for what is wrong, in one line, without an excerpt of the grammar."""
    line = next((line for line in error.splitlines() if line.strip()), "no reason was given")
    return line.strip()[:REASON_CHARACTERS]


@contextmanager
def translated_panics() -> Iterator[None]:
    """Rust's panics come as an exception that is no `Exception`, and would end the engine. Raises: EngineError instead."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise EngineError(f"llguidance failed: {str(error)[:REASON_CHARACTERS]}") from None
