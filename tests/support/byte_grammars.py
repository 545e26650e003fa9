"""Grammars in Lark's syntax followed byte by byte: a vocabulary of all bytes, and control tokens by name."""

from __future__ import annotations

import random
from collections.abc import Sequence

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

SPACE = frozenset(b" \n\t\r")


class ByteVocabulary:
    """256 bytes, then control tokens; the last token ends texts.

    Args:
        control: their texts.
    """

    bos_token_id = None
    special_token_ids: Sequence[int] = ()

    def __init__(self, control: Sequence[str] = ()) -> None:
        self.control = {text: 256 + at for at, text in enumerate(control)}
        self.eos_token_id = 256 + len(control)
        self.tokens = [bytes([one]) for one in range(256)] + [b"\xff" + one.encode() for one in [*control, "<end>"]]
        self._tokenizer = LLTokenizer(TokenizerWrapper(self), n_vocab=len(self.tokens), eos_token=[self.eos_token_id])

    def __call__(self, text: bytes) -> list[int]:
        return list(text)

    def matcher(self, grammar: str) -> LLMatcher:
        """Returns: the grammar, at its beginning."""
        made = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
        assert not made.is_error(), made.get_error()
        return made

    def accepts(self, grammar: str, text: str) -> bool:
        """True if a text of no control tokens is whole by the grammar."""
        matcher = self.matcher(grammar)
        for one in text.encode():
            if matcher.validate_tokens([one]) != 1:
                return False
            matcher.consume_token(one)
        return bool(matcher.is_accepting())

    def walk(self, grammar: str, seed: int, *, steps: int = 3000) -> list[str]:
        """Returns: a text that the grammar permits, in pieces, control tokens among them. White space is taken where nothing else can come."""
        matcher, chance, made = self.matcher(grammar), random.Random(seed), list[int]()
        for _ in range(steps):
            mask = matcher.compute_bitmask()
            allowed = [one for one in range(len(self.tokens)) if mask[one // 8] >> (one % 8) & 1]
            if self.eos_token_id in allowed and (chance.random() < 0.5 or len(allowed) == 1):
                break
            allowed = [one for one in allowed if one != self.eos_token_id]
            dense = [one for one in allowed if one not in SPACE] or allowed
            made.append(chance.choice(dense))
            matcher.consume_token(made[-1])
        else:
            raise AssertionError(f"no end within {steps} steps: {bytes(one for one in made if one < 256)[-200:]!r}")
        pieces, run = list[str](), bytearray()
        for one in [*made, self.eos_token_id]:
            if one < 256:
                run.append(one)
                continue
            pieces += [run.decode(errors="replace"), self.tokens[one][1:].decode()]
            run.clear()
        return [one for one in pieces[:-1] if one]
