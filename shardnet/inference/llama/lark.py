"""Grammars in Lark's syntax, JSON schemas and regular expressions among them, by llguidance. Knows a vocabulary of llama.cpp's and nothing of models.

llguidance never raises: after an error its matcher permits the end of the text, so each mask is asked for its error before it counts.

Source: llguidance's python/llguidance/_lib.pyi and docs/syntax.md.
"""

from __future__ import annotations

import ctypes
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from shardnet.errors import EngineError, UsageError
from shardnet.token_arrays import common_length

CONTROL = int(llama_cpp.LLAMA_TOKEN_ATTR_CONTROL) | int(llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN)
MAX_PIECE = 1024
REASON_CHARACTERS = 300
REWORDED = {
    "oneOf constraints are not supported": "oneOf cannot be enforced where two options may fit at once; use anyOf",
    "Unsatisfiable schema": "no document fits the schema",
}
_PLACE = re.compile(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?")
LIMITS: dict[str, Any] = {"max_grammar_size": 200_000, "initial_lexer_fuel": 500_000, "verbose_errors": False}
"""About 50 ms of compiling at most; the steps keep llguidance's own limits, about 15 ms each."""


class TokenTable:
    """A vocabulary as llguidance wants it.

    Args:
        tokens: what each one spells; nothing for one that never comes.
        ends: those that end a text.
        special: those that no text has: they come only where a grammar names them, as `<|im_end|>` or `<[7]>`.
        write: tokens of a text that the grammar leaves no choice about, as the model itself would write it.
    """

    def __init__(
        self,
        tokens: list[bytes],
        ends: frozenset[int],
        write: Callable[[bytes], list[int]],
        *,
        special: Sequence[int] = (),
    ) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper  # 15 ms, which most engines never need

        self.n_vocab = len(tokens)
        self.ends = ends
        self._write = write
        self._greedy: Callable[[bytes], list[int]] | None = None
        # The names that llguidance's TokenizerWrapper asks for.
        self.tokens = tokens
        self.eos_token_id = min(ends, default=0)
        self.bos_token_id = None
        self.special_token_ids = list(special)
        with translated_panics():
            self.tokenizer = LLTokenizer(
                TokenizerWrapper(self), n_vocab=self.n_vocab, eos_token=sorted(ends) or [self.eos_token_id]
            )
        self._greedy = lambda text: list(self.tokenizer.greedy_tokenize(text.decode(errors="replace")))

    def __call__(self, text: bytes) -> list[int]:
        """Returns: tokens that spell a text."""
        tokens = self._write(text)
        if b"".join(self.tokens[token] for token in tokens) == text or self._greedy is None:
            return tokens
        return self._greedy(text)  # some vocabularies put a space in front of every text


def byte_table() -> TokenTable:
    """Returns: the least of all vocabularies: each byte is a token, and 256 ends the text."""
    # The end has a name: llguidance panics at a grammar that names a token where no token has one.
    return TokenTable([*(bytes([byte]) for byte in range(256)), b"<end>"], frozenset([256]), list, special=[256])


def table_of(vocab: Any, n_vocab: int) -> TokenTable:
    """Returns: the table of a vocabulary of llama.cpp's, which has to outlive it. Takes about 10 us a token, and some 400 bytes."""
    buffer = ctypes.create_string_buffer(MAX_PIECE)

    def piece(token: int) -> bytes:
        count = int(llama_cpp.llama_token_to_piece(vocab, token, buffer, MAX_PIECE, 0, token in special))
        return buffer.raw[:count] if count > 0 else b""

    def write(text: bytes) -> list[int]:
        size = len(text) + 8
        tokens = (llama_cpp.llama_token * size)()
        count = int(llama_cpp.llama_tokenize(vocab, text, len(text), tokens, size, False, False))
        return list(tokens[: max(0, count)])

    tokens = range(n_vocab)
    ends = frozenset(token for token in tokens if llama_cpp.llama_vocab_is_eog(vocab, token))
    special = frozenset(token for token in tokens if llama_cpp.llama_vocab_get_attr(vocab, token) & CONTROL)
    return TokenTable([piece(token) for token in tokens], ends, write, special=sorted(special))


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
        self._accepted = array("i")
        self._fed = 0
        """How many of them the matcher has seen: ends of the text behind a whole document are not for it."""

    def close(self) -> None:
        """Free llguidance's side of it."""
        del self._matcher

    def follow(self, tokens: Sequence[int]) -> None:
        """Stand where `tokens`, the sequence since its prompt, have led; goes back to where they differ from what was followed so far.

        Raises: EngineError if the grammar does not permit them.
        """
        tokens = array("i", tokens)
        known = common_length(tokens, self._accepted)
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
    """Returns: llguidance's words for what is wrong, in one line, without an excerpt of the grammar."""
    line = next((line for line in error.splitlines() if line.strip()), "no reason was given")
    line = _PLACE.sub("", line.strip())
    if line.endswith(":"):
        detail = next((one for one in error.splitlines() if one.strip().startswith("error:")), "")
        line = f"{line} {detail.strip().removeprefix('error:').strip()}"
    line = next((ours for theirs, ours in REWORDED.items() if line.startswith(theirs)), line)
    return line[:REASON_CHARACTERS]


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
