"""Where the last few tokens of a text stood before. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

INDEX_AT_ONCE = 1024
"""Tokens that one call takes into the index, so that a long prompt does not hold up the event loop."""
LEAST_PLACES = 1 << 12
MOST_PLACES = 32
"""Places that are looked at for the longest run: a text of one token over and over has as many as tokens."""


class NgramIndex:
    """Where each run of `min_ngram` to `max_ngram` tokens stood last. Constant work, and a dozen bytes, for each token.

    As a compressor's dictionary: by the hash of `min_ngram` tokens the latest place behind such, and by each place the one before it; longer runs are
    found by comparing at these places. Source: RFC 1951, section 4.
    """

    def __init__(self, min_ngram: int, max_ngram: int) -> None:
        self._min, self._max = min_ngram, max_ngram
        self._latest = array("i")  # by hash; 0: none, as nothing stands before the first token
        self._before = array("i", [0])  # by place
        self._indexed = 1  # runs that end before this position, with what follows them, are known

    def catch_up(self, tokens: Sequence[int], most: int = INDEX_AT_ONCE) -> bool:
        """Take in the tokens since the last call, `most` at once. Returns: True once all are known."""
        if not self._latest:
            self._latest = array("i", bytes(4 * max(LEAST_PLACES, 1 << (2 * len(tokens)).bit_length())))
        latest, before, mask, size = self._latest, self._before, len(self._latest) - 1, self._min
        end = min(len(tokens), self._indexed + most)
        for position in range(self._indexed, end):
            place = 0
            if position >= size:
                slot = hash(tuple(tokens[position - size : position])) & mask
                place, latest[slot] = latest[slot], position
            before.append(place)
        self._indexed = max(self._indexed, end)
        return end >= len(tokens)

    def place(self, tokens: Sequence[int]) -> tuple[int, int]:
        """Returns: the length of the longest known end of `tokens`, and the latest place behind such; 0, 0 if none is known."""
        if len(tokens) < self._min or not self._latest:
            return 0, 0
        ending = list(tokens[-self._max :])
        place = self._latest[hash(tuple(ending[-self._min :])) & (len(self._latest) - 1)]
        longest = start = 0
        for _ in range(MOST_PLACES):
            if not place or longest == len(ending):
                break
            length = common_end(ending, tokens[max(0, place - len(ending)) : place])
            if length > longest:
                longest, start = length, place
            place = self._before[place]
        return (longest, start) if longest >= self._min else (0, 0)

    def find(self, tokens: Sequence[int], count: int) -> tuple[int, list[int]]:
        """Returns: the length of the longest known end of `tokens`, and `count` tokens that followed it at its latest place; 0 if none is known.

        Where that place runs into the end of the text, the text is taken to go on repeating itself.
        """
        longest, start = self.place(tokens)
        if not longest:
            return 0, []
        period = len(tokens) - start
        return longest, [tokens[start + index % period] for index in range(count)]


def common_end(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns: how many tokens at their ends are the same."""
    length = 0
    for mine, theirs in zip(reversed(one), reversed(other), strict=False):
        if mine != theirs:
            break
        length += 1
    return length
