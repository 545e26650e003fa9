"""Arrays of tokens compared in pieces, not token by token: prompts and answers are long, and this is asked for each of them."""

from __future__ import annotations

from array import array


def common_length(left: array[int], right: array[int]) -> int:
    """Returns: how many tokens two sequences, int32, have in common from their beginnings."""
    same, end = 0, min(len(left), len(right))
    if left[:end] == right[:end]:  # an answer that goes on
        return end
    while same < end:
        middle = (same + end + 1) // 2
        if left[same:middle] == right[same:middle]:
            same = middle
        else:
            end = middle - 1
    return same
