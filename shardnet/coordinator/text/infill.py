"""Filling in the middle: the tokens that a code model has for it, and the prompt around a gap. Pure.

The prompt stands in the order prefix, suffix, middle, which every code model with such tokens was trained on; the answer is what belongs between.

Source: Bavarian et al., "Efficient Training of Language Models to Fill in the Middle" (2022); llama.h (`llama_vocab_fim_pre` and its like).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """A model's tokens for filling in.

    Attributes:
        prefix, suffix, middle: stand before the text in front of the gap, before the one behind it, and before the answer.
        all: these, and those that pad and that part files and repositories: none of them belongs into an answer, so each ends it.
    """

    prefix: int
    suffix: int
    middle: int
    all: frozenset[int]

    def prompt(self, before: list[int], behind: list[int], bos: int | None) -> list[int]:
        """Returns: the prompt around a gap.

        Args:
            before, behind: the tokens on its two sides.
            bos: begin-of-text token, where the vocabulary wants one; it comes first, also if `before` began with it.
        """
        if bos is None:
            return [self.prefix, *before, self.suffix, *behind, self.middle]
        text = before[1:] if before[:1] == [bos] else before
        return [bos, self.prefix, *text, self.suffix, *behind, self.middle]
