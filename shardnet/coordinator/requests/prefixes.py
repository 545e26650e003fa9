"""Finished sequences that stay in KV until room is needed: a prompt that begins like one of them starts from there. Pure.

A kept sequence has a place on every stage of its route, but nobody who uses it: whoever needs the place gets it, the least recently used first. A
request takes one over whole, with its id; the position rule drops what does not belong to it on each stage. Or it has its beginning copied, and
leaves it as it is: then the sequence is *pinned* until the copy is known to be made, and nobody frees it, or takes less of it than is being copied.
Which of these a request does is for `beginnings`.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shardnet.coordinator.placement.planning import Route
from shardnet.metrics.buckets import WAIT_S, Buckets

MOST_REFUSALS = 2
"""A model whose stages refuse so many take-overs in a row, with none that worked between, cannot take its state back; so with copies."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A sequence that nobody uses. `tokens`, int32, are those with KV on every stage; the first `n_cold` have the numbers of a cold start, what
    follows came one by one."""

    sequence_id: str
    route: Route
    tokens: array[int]
    n_cold: int = 0


@dataclass(slots=True)
class Prefixes:
    """All kept sequences, the least recently used first.

    Attributes:
        min_tokens: a shorter common beginning is not worth a take-over, a copy, or a wait.
        shares: beginnings are copied, also from requests in progress, and those that are being computed are waited for.
        max_wait_s: so long at most for one that does not get on; 0: not at all.
        hits: requests that began with a kept sequence, or with a copy.
        copies: those that began with a copy.
        waits: requests that waited for what another one computed; `waited`: seconds, of waits that are over.
        tokens_reused: prompt tokens that were not run for it.
        refused: take-overs and copies that a stage refused, since the sequence was not there any more.
        evicted: sequences that were freed for room.
    """

    min_tokens: int = 16
    shares: bool = True
    max_wait_s: float = 60.0
    hits: int = 0
    copies: int = 0
    waits: int = 0
    tokens_reused: int = 0
    refused: int = 0
    evicted: int = 0
    waited: Buckets = field(default_factory=lambda: Buckets(WAIT_S))
    _kept: list[Kept] = field(default_factory=list)
    _pins: dict[str, list[int]] = field(default_factory=dict)
    _refusals: Counter[str] = field(default_factory=Counter)
    _copy_refusals: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self._kept)

    def accepts(self, model_id: str) -> bool:
        """False for a model that was seen not to take its state back."""
        return self._refusals[model_id] < MOST_REFUSALS

    def copies_of(self, model_id: str) -> bool:
        """False for a model whose sequences were seen not to be copied, or where none is to be."""
        return self.shares and self._copy_refusals[model_id] < MOST_REFUSALS

    def keep(self, kept: Kept) -> bool:
        """Returns: False if it is not worth keeping: it is to be freed."""
        if len(kept.tokens) < self.min_tokens or not self.accepts(kept.route.model_id):
            return False
        self._kept.append(kept)
        return True

    def latest_first(self) -> list[Kept]:
        """Returns: all that are kept, the most recently used first."""
        return self._kept[::-1]

    def take(self, kept: Kept) -> None:
        """A request takes it over."""
        self._kept.remove(kept)

    # -- pins ----------------------------------------------------------------------------------------------------------------

    def pin(self, sequence_id: str, count: int) -> None:
        """So many tokens of a sequence, kept or not, are being copied."""
        self._pins.setdefault(sequence_id, []).append(count)

    def unpin(self, sequence_id: str, count: int) -> None:
        """A copy that was pinned is made, or not wanted any more."""
        counts = self._pins[sequence_id]
        counts.remove(count)
        if not counts:
            del self._pins[sequence_id]

    def pinned(self, sequence_id: str) -> int:
        """Returns: how many of its tokens are being copied; 0: it is free."""
        return max(self._pins.get(sequence_id, (0,)))

    # -- room ----------------------------------------------------------------------------------------------------------------

    def can_make_room(self, route: Route, used: Mapping[tuple[str, str], int]) -> bool:
        """True if `make_room` would leave a place on every node of the route."""
        options, model_id = route.options, route.model_id
        return all(
            used.get((model_id, node_id), 0) + sum(self._is_held(kept, model_id, node_id) for kept in self._kept)
            < options.n_seq
            for node_id in route.node_ids
        )

    def make_room(self, route: Route, used: Mapping[tuple[str, str], int]) -> list[Kept]:
        """Returns: the sequences, now taken out, that are to be freed before another one begins on `route`."""
        freed: list[Kept] = []
        for node_id in dict.fromkeys(route.node_ids):
            while self._taken(route.model_id, node_id, used) >= route.options.n_seq:
                oldest = next(
                    (
                        kept
                        for kept in self._kept
                        if _is_on(kept, route.model_id, node_id) and not self.pinned(kept.sequence_id)
                    ),
                    None,
                )
                if oldest is None:
                    break
                self._kept.remove(oldest)
                freed.append(oldest)
        self.evicted += len(freed)
        return freed

    def is_full(self, route: Route, used: Mapping[tuple[str, str], int]) -> bool:
        """True if a new sequence on the route needs the place of a kept one."""
        return any(self._taken(route.model_id, node_id, used) >= route.options.n_seq for node_id in route.node_ids)

    def _taken(self, model_id: str, node_id: str, used: Mapping[tuple[str, str], int]) -> int:
        return used.get((model_id, node_id), 0) + sum(_is_on(kept, model_id, node_id) for kept in self._kept)

    def _is_held(self, kept: Kept, model_id: str, node_id: str) -> bool:
        return _is_on(kept, model_id, node_id) and self.pinned(kept.sequence_id) > 0

    def drop(self, is_lost: Callable[[Kept], bool]) -> list[Kept]:
        """Returns: the sequences that are lost, now taken out, to be freed where that can still be done."""
        lost = [kept for kept in self._kept if is_lost(kept)]
        self._kept = [kept for kept in self._kept if kept not in lost]
        return lost

    # -- what came of it -----------------------------------------------------------------------------------------------------

    def worked(self, model_id: str, count: int, *, is_copy: bool = False) -> None:
        """A request that took a sequence over, or began with a copy, got its first token; `count` tokens of its prompt were not run."""
        self.hits += 1
        self.tokens_reused += count
        self.copies += is_copy
        del (self._copy_refusals if is_copy else self._refusals)[model_id]

    def was_refused(self, route: Route, *, is_copy: bool = False, is_news: bool = True) -> list[Kept]:
        """A stage did not have the sequence, or could not take it back, or copy it.

        Args:
            is_news: it says something of the model, or of what is kept; else it is one more of many at once, or the source was gone.

        Returns: the others of that route, to be freed: they are no better.
        """
        self.refused += 1
        if not is_news:
            return []
        (self._copy_refusals if is_copy else self._refusals)[route.model_id] += 1
        return self.drop(lambda kept: kept.route == route)


def _is_on(kept: Kept, model_id: str, node_id: str) -> bool:
    return kept.route.model_id == model_id and node_id in kept.route.node_ids
