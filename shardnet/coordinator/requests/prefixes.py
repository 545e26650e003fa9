"""Finished sequences that stay in KV until room is needed: a prompt that begins like one of them starts from there. Pure.

A kept sequence has a place on every stage of its route, but nobody who uses it: whoever needs the place gets it, the least recently used first.
A request takes one over whole, with its id; the position rule drops what does not belong to it on each stage.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shardnet.coordinator.placement.chunks import LEAST
from shardnet.coordinator.placement.planning import Route

MOST_REFUSALS = 2
"""A model whose stages refuse so many take-overs in a row, with none that worked between, cannot take its state back."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A sequence that nobody uses. `tokens`, int32, are those with KV on every stage."""

    sequence_id: str
    route: Route
    tokens: array[int]


@dataclass(slots=True)
class Prefixes:
    """All kept sequences, the least recently used first.

    Attributes:
        min_tokens: a shorter common beginning is not worth a take-over.
        hits: requests that began with a kept sequence.
        tokens_reused: prompt tokens that were not run for it.
        refused: take-overs that a stage refused, since the sequence was not there any more.
        evicted: sequences that were freed for room.
    """

    min_tokens: int = 16
    hits: int = 0
    tokens_reused: int = 0
    refused: int = 0
    evicted: int = 0
    _kept: list[Kept] = field(default_factory=list)
    _refusals: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self._kept)

    def accepts(self, model_id: str) -> bool:
        """False for a model that was seen not to take its state back."""
        return self._refusals[model_id] < MOST_REFUSALS

    def keep(self, kept: Kept) -> bool:
        """Returns: False if it is not worth keeping: it is to be freed."""
        if len(kept.tokens) < self.min_tokens or not self.accepts(kept.route.model_id):
            return False
        self._kept.append(kept)
        return True

    def take(
        self, routes: Iterable[Route], prompt: Sequence[int], used: Mapping[tuple[str, str], int]
    ) -> tuple[Kept, int] | None:
        """Take out the sequence with the longest common beginning on one of `routes`, the latest of equal ones.

        At least the prompt's last two tokens have to be run: one row alone is multiplied by other kernels than those of a cold start. While a place
        is free, a sequence that would lose most of what it has is left to its owner: two chats with the same system prompt shall not take each
        other's turns.

        Returns: the sequence, and how many tokens of the prompt are there; None if no beginning is long enough.
        """
        wanted = array("i", prompt)[:-LEAST]
        allowed = set(routes)
        best: tuple[Kept, int] | None = None
        for kept in reversed(self._kept):
            if kept.route not in allowed:
                continue
            count = common_length(kept.tokens, wanted)
            if count < self.min_tokens or (best is not None and count <= best[1]):
                continue
            if 2 * count < len(kept.tokens) and not self._is_full(kept.route, used):
                continue
            best = kept, count
        if best is not None:
            self._kept.remove(best[0])
        return best

    def make_room(self, route: Route, used: Mapping[tuple[str, str], int]) -> list[Kept]:
        """Returns: the sequences, now taken out, that are to be freed before another one begins on `route`."""
        freed: list[Kept] = []
        for node_id in dict.fromkeys(route.node_ids):
            while self._taken(route.model_id, node_id, used) >= route.options.n_seq:
                oldest = next((kept for kept in self._kept if _is_on(kept, route.model_id, node_id)), None)
                if oldest is None:
                    break
                self._kept.remove(oldest)
                freed.append(oldest)
        self.evicted += len(freed)
        return freed

    def drop(self, is_lost: Callable[[Kept], bool]) -> list[Kept]:
        """Returns: the sequences that are lost, now taken out, to be freed where that can still be done."""
        lost = [kept for kept in self._kept if is_lost(kept)]
        self._kept = [kept for kept in self._kept if kept not in lost]
        return lost

    def worked(self, model_id: str, count: int) -> None:
        """A request that took a sequence over got its first token; `count` tokens of its prompt were not run."""
        self.hits += 1
        self.tokens_reused += count
        del self._refusals[model_id]

    def was_refused(self, route: Route) -> list[Kept]:
        """A stage did not have the sequence, or could not take it back. Returns: the others of that route, to be freed: they are no better."""
        self.refused += 1
        self._refusals[route.model_id] += 1
        return self.drop(lambda kept: kept.route == route)

    def _taken(self, model_id: str, node_id: str, used: Mapping[tuple[str, str], int]) -> int:
        return used.get((model_id, node_id), 0) + sum(_is_on(kept, model_id, node_id) for kept in self._kept)

    def _is_full(self, route: Route, used: Mapping[tuple[str, str], int]) -> bool:
        return any(self._taken(route.model_id, node_id, used) >= route.options.n_seq for node_id in route.node_ids)


def _is_on(kept: Kept, model_id: str, node_id: str) -> bool:
    return kept.route.model_id == model_id and node_id in kept.route.node_ids


def common_length(left: array[int], right: array[int]) -> int:
    """Returns: how many tokens two sequences have in common from their beginnings. Compares pieces, not tokens: prompts are long."""
    same, end = 0, min(len(left), len(right))
    while same < end:
        middle = (same + end + 1) // 2
        if left[same:middle] == right[same:middle]:
            same = middle
        else:
            end = middle - 1
    return same
