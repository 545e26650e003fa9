"""What a new request begins with: nothing, a kept sequence, a copy of another one's beginning, or a wait for one who computes the same. Pure.

Every prompt is computed once: who comes while another request computes what its own prompt begins with waits until every stage has that, and has it
copied. Only such as came earlier are waited for, so nobody waits in a circle. If that one ends before it has come so far, those who waited choose
anew, and the first of them goes on in its place (with what it had computed, if it was cancelled).

A beginning is taken in whole blocks of rows, so that the numbers are those of a cold start of the same prompt, whatever its chunks
(`placement.chunks`). An answer's tokens came one by one: a kept sequence that a prompt goes on with has those numbers. A request that begins for the
second time, after a node was lost, takes what has the numbers of a cold start, and nothing else.

What a beginning is worth is told in tokens: those that need not be run, less what it costs to go where more requests run than elsewhere. So what
everybody's prompts begin with does not bring everybody to one of several pipelines.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from shardnet.coordinator.placement.chunks import BLOCK, LEAST
from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.prefixes import Kept, Prefixes
from shardnet.token_arrays import common_length

CROWDING = 256
"""Tokens of a prompt that are as much work as one more neighbour makes for an answer. Qwen2.5-Coder-0.5B on one thread: a row more in a batch takes
20 ms, a token of a prompt 8 ms, so that answers of 100 tokens set the two equal."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A request in progress, whose beginning others may have copied.

    Attributes:
        number: in order of arrival.
        tokens: its prompt, int32.
        n_ready: so many of them have KV on every stage.
        n_cold: so many have, or will have, the numbers of a cold start.
        copies: (sequence, count) whose beginning it has copied just now; None if that is done.
    """

    number: int
    route: Route
    sequence_id: str
    tokens: array[int]
    n_ready: int
    n_cold: int
    copies: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Cold:
    """Begin with nothing."""

    route: Route


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Go on with a kept sequence, behind its first `count` tokens."""

    kept: Kept
    count: int

    @property
    def route(self) -> Route:
        """Returns: where it is."""
        return self.kept.route


@dataclass(frozen=True, slots=True)
class Copy:
    """Begin with a copy of the first `count` tokens of a sequence, of which `n_cold` have the numbers of a cold start."""

    route: Route
    sequence_id: str
    count: int
    n_cold: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until the request of that number, with that sequence, has `count` tokens of its prompt on every stage; then choose again."""

    route: Route
    number: int
    sequence_id: str
    count: int


Beginning = Cold | TakeOver | Copy | Wait


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request may begin with.

    Attributes:
        number: of the request; those with a smaller one came before.
        route: that it was given; `free`: all of its model that have a place.
        copying: those on which sequences can be copied.
        only_cold: with the numbers of a cold start, or with nothing.
        may_wait: for another request.
    """

    number: int
    prompt: Sequence[int]
    route: Route
    free: Sequence[Route]
    copying: Collection[Route]
    only_cold: bool = False
    may_wait: bool = True


def choose(asked: Asked, prefixes: Prefixes, owners: Iterable[Owner], used: Mapping[tuple[str, str], int]) -> Beginning:
    """Decide what a request begins with. The prompt's last `LEAST` tokens are always run.

    Args:
        used: (model id, node id) -> sequences in use there.
    """
    wanted = array("i", asked.prompt)[:-LEAST]
    here = [one for one in owners if one.number != asked.number]
    detours = {one: _detour(one, asked.route, used) for one in asked.free}
    found = _kept(asked, wanted, prefixes, used, detours)
    worth = 0 if found is None else found.count - detours[found.route]
    for owner in here:
        shared = _shared(owner, wanted) if owner.route in detours and owner.route in asked.copying else 0
        its_worth = shared - detours.get(owner.route, 0)
        if shared <= owner.n_ready and its_worth >= max(prefixes.min_tokens, worth + (not isinstance(found, Copy))):
            found, worth = Copy(owner.route, owner.sequence_id, shared, owner.n_cold), its_worth
    awaited = _awaited(asked, wanted, here, worth + prefixes.min_tokens)
    if awaited is not None:
        return awaited
    if isinstance(found, TakeOver):
        return found
    beginning = found or Cold(asked.route)
    if prefixes.can_make_room(beginning.route, used):
        return beginning
    # What would have to make room is being copied: that takes as long as one step.
    nodes = frozenset(beginning.route.node_ids)
    copier = next((one for one in here if one.copies is not None and nodes.intersection(one.route.node_ids)), None)
    return beginning if copier is None else Wait(beginning.route, copier.number, copier.sequence_id, 1)


def _detour(route: Route, given: Route, used: Mapping[tuple[str, str], int]) -> int:
    """Returns: what it costs to take a route on which more requests run than on the one that was given, in tokens of a prompt."""

    def most_used(one: Route) -> int:
        return max(used.get((one.model_id, node_id), 0) for node_id in one.node_ids)

    return CROWDING * max(0, most_used(route) - most_used(given))


def _kept(
    asked: Asked,
    wanted: array[int],
    prefixes: Prefixes,
    used: Mapping[tuple[str, str], int],
    detours: Mapping[Route, int],
) -> TakeOver | Copy | None:
    """Returns: the kept sequence whose common beginning is worth most, the latest of equal ones.

    While a place is free, a sequence that would lose something is copied. Where that cannot be, it is left to its owner if it would lose most of what
    it has: two chats with the same system prompt shall not take each other's turns.
    """
    best: TakeOver | Copy | None = None
    most = prefixes.min_tokens - 1
    for kept in prefixes.latest_first():
        if kept.route not in detours:
            continue
        count = _usable(common_length(kept.tokens, wanted), kept.n_cold, only_cold=asked.only_cold)
        worth = count - detours[kept.route]
        if worth <= most:
            continue
        before = best
        lost = len(kept.tokens) - count
        is_full = prefixes.is_full(kept.route, used)
        can_copy = kept.route in asked.copying
        if can_copy and not is_full and lost >= min(prefixes.min_tokens, LEAST):
            best = Copy(kept.route, kept.sequence_id, count, kept.n_cold)
        elif count >= prefixes.pinned(kept.sequence_id) and (is_full or count >= lost):
            best = TakeOver(kept, count)
        elif can_copy and not is_full:
            best = Copy(kept.route, kept.sequence_id, count, kept.n_cold)
        if best is not before:
            most = worth
    return best


def _awaited(asked: Asked, wanted: array[int], owners: Sequence[Owner], least: int) -> Wait | None:
    """Returns: whom to wait for: who will have most of the prompt, and of equal ones who has come farthest; None if that is not worth it."""
    if not asked.may_wait or asked.route not in asked.copying:
        return None
    best: tuple[int, int, int] | None = None
    chosen: Wait | None = None
    for owner in owners:
        if owner.number >= asked.number or owner.route != asked.route:
            continue
        shared = _shared(owner, wanted)
        rank = (shared, owner.n_ready, -owner.number)
        if shared > owner.n_ready and shared >= least and (best is None or rank > best):
            best, chosen = rank, Wait(asked.route, owner.number, owner.sequence_id, shared)
    return chosen


def _shared(owner: Owner, wanted: array[int]) -> int:
    """Returns: tokens that a prompt can have from a request in progress, once it has come so far."""
    return _usable(common_length(owner.tokens, wanted), owner.n_cold, only_cold=True)


def _usable(common: int, n_cold: int, *, only_cold: bool) -> int:
    """Returns: how much of a common beginning is taken: whole blocks, and behind them what came one by one, if that is wanted and is more than a
    block."""
    if only_cold or common <= n_cold or (n_cold and common - n_cold < BLOCK):
        common = min(common, n_cold)
        return common - common % BLOCK
    return common
