"""Acts on what `beginnings` and `prefixes` decide: who begins with what, who waits for whom, and what is freed on the nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.beginnings import Asked, Beginning, Cold, Copy, Owner, TakeOver, Wait, choose
from shardnet.coordinator.requests.pipeline import Generation
from shardnet.coordinator.requests.places import Places
from shardnet.coordinator.requests.prefixes import Kept, Prefixes
from shardnet.coordinator.requests.running import Running
from shardnet.errors import UnreachableError
from shardnet.log import get
from shardnet.messages import FreeSequence

log = get("requests")


@dataclass(slots=True)
class _Entry:
    """A request in progress.

    Attributes:
        copies: sequence and count, until a stage behind all others has answered the step that copies.
        as_sequence: its own, meanwhile.
        waits: for whom; since when, of the clock of `before_start`.
        n_awaited: tokens that the one whom it waits for had when that was last looked at; that changed at `moved_s`.
        n_refused: beginnings that had been refused when it began.
    """

    number: int
    copies: tuple[str, int] | None = None
    as_sequence: str = ""
    waits: Wait | None = None
    since_s: float = 0.0
    n_awaited: int = 0
    moved_s: float = 0.0
    n_refused: int = 0


class Keeper:
    """Keeps sequences of answers that came to their end, and has the beginnings of those that have not copied.

    Args:
        prefixes: those kept; None: none is ever.
        places: sequences that are in use, for which kept ones make room.
        routes: pipelines of a model that are ready now.
        can_copy: whether the nodes of a route know how to copy sequences of its model.
        send: to a node. Raises: PeerLost.
    """

    def __init__(
        self,
        prefixes: Prefixes | None,
        places: Places,
        routes: Callable[[str], list[Route]],
        can_copy: Callable[[Route], bool],
        send: Callable[[str, FreeSequence], None],
    ) -> None:
        self._prefixes = Prefixes() if prefixes is None else prefixes
        self._is_on = prefixes is not None
        self._places = places
        self._routes = routes
        self._can_copy = can_copy
        self._send = send
        self._closed = False
        self._entries: dict[Running, _Entry] = {}  # in order of arrival
        self._arrived = 0
        self._n_waiting = self._n_copying = 0

    @property
    def waiting(self) -> int:
        """Returns: requests that wait for what another one computes."""
        return self._n_waiting

    def accepts(self, model_id: str) -> bool:
        """False for a model whose sequences are not worth keeping."""
        return self._is_on and self._prefixes.accepts(model_id)

    # -- beginning -----------------------------------------------------------------------------------------------------------

    def before_start(self, running: Running, route: Route, at_s: float, *, may_wait: bool = True) -> Beginning:
        """Decide what a request begins with; what has to make room for it is freed.

        Args:
            may_wait: False: not any longer.
        """
        entry = self._entries.get(running)
        if entry is None:
            self._arrived += 1
            entry = self._entries[running] = _Entry(self._arrived, since_s=at_s)
        self._settle(entry)
        if entry.waits is not None:
            self._n_waiting -= 1
        else:
            entry.since_s = at_s
        generation = running.generation
        found: Beginning = Cold(route)
        if self._is_on and generation.spec.reading is None:
            found = self._choose(entry, generation, route, may_wait=may_wait)
        waited, entry.waits = entry.waits is not None, None
        entry.n_refused = self._prefixes.refused
        if waited and not isinstance(found, Wait):
            self._prefixes.waited.add(at_s - entry.since_s)
        match found:
            case Wait():
                entry.waits, entry.n_awaited, entry.moved_s = found, 0, at_s
                self._n_waiting += 1
                self._prefixes.waits += not waited
                log.debug("prompt_waits", request_id=running.request_id, cached_tokens=found.count)
                return found
            case TakeOver(kept=kept):
                self._prefixes.take(kept)
            case Copy(sequence_id=sequence_id, count=count):
                self._free(self._prefixes.make_room(found.route, self._places.used))
                self._prefixes.pin(sequence_id, count)
                self._n_copying += 1
                entry.copies = sequence_id, count
                log.debug("prompt_copied", request_id=running.request_id, cached_tokens=count)
            case Cold():
                self._free(self._prefixes.make_room(route, self._places.used))
        return found

    def _choose(self, entry: _Entry, generation: Generation, route: Route, *, may_wait: bool) -> Beginning:
        model_id = route.model_id
        routes = self._routes(model_id)
        free = [one for one in routes if self._places.has_room(one)]
        copying: Collection[Route] = ()
        if self._prefixes.copies_of(model_id):
            copying = [one for one in routes if self._can_copy(one)]
        asked = Asked(
            entry.number,
            generation.spec.prompt,
            route,
            free,
            copying,
            only_cold=generation.attempts > 0,
            may_wait=may_wait and self._prefixes.max_wait_s > 0,
        )
        owners = _owners(self._entries, model_id) if copying else ()
        return choose(asked, self._prefixes, owners, self._places.used)

    def began(self, running: Running) -> None:
        """The request has a sequence of its own now, or waits."""
        self._entries[running].as_sequence = running.generation.sequence_id
        self._set_awaited()

    def ripe(self, running: Running) -> list[tuple[Running, Route]]:
        """A request came on, or did not: see who waited for it.

        Returns: those who are to choose again, in order of arrival, and the route that each was given.
        """
        if not self._n_waiting and not self._n_copying:
            return []
        entry = self._entries.get(running)
        if entry is None:
            return []
        generation = running.generation
        sequence_id, n_ready = generation.sequence_id, generation.n_ready
        if entry.copies is not None and (n_ready or sequence_id != entry.as_sequence):
            self._settle(entry)
            self._set_awaited()
        return [
            (one, its.waits.route)
            for one, its in self._entries.items()
            if its.waits is not None
            and its.waits.number == entry.number
            and (n_ready >= its.waits.count or sequence_id != its.waits.sequence_id)
        ]

    def overdue(self, at_s: float) -> list[tuple[Running, Route]]:
        """Returns: those who wait for one who has not got on for too long, and the route that each was given.

        As long as that one gets on nobody would be quicker by computing the same beside it, however long it takes.
        """
        if not self._n_waiting:
            return []
        found = []
        ready = {one.number: running.generation.n_ready for running, one in self._entries.items()}
        for running, one in self._entries.items():
            if one.waits is None:
                continue
            n_ready = ready.get(one.waits.number, 0)
            if n_ready != one.n_awaited:
                one.n_awaited, one.moved_s = n_ready, at_s
            elif at_s - one.moved_s > self._prefixes.max_wait_s:
                found.append((running, one.waits.route))
        return found

    def note_first_token(self, generation: Generation) -> None:
        """A request has its first token: if it began with a sequence of others, that worked."""
        if generation.n_reused:
            self._prefixes.worked(generation.spec.model_id, generation.n_reused, is_copy=generation.is_copy)

    def note_refusal(self, running: Running) -> None:
        """A step failed: if that was because a stage did not go on with the sequence taken over, or copied, others like it are lost.

        That speaks against the model only if the coordinator still believed the sequence to be there, and if nobody's refusal was known when this
        request began: an engine that died refuses many at once.
        """
        generation, entry = running.generation, self._entries.get(running)
        if entry is not None and generation.was_refused and generation.route is not None:  # else it is over
            generation.was_refused = False
            log.debug("prefix_refused", model_id=generation.spec.model_id)
            is_news = entry.n_refused == self._prefixes.refused and (
                entry.copies is None or self._is_there(entry.copies[0])
            )
            self._free(self._prefixes.was_refused(generation.route, is_copy=generation.refused_copy, is_news=is_news))

    def _is_there(self, sequence_id: str) -> bool:
        owners = (running.generation.sequence_id for running in self._entries)
        return sequence_id in owners or any(one.sequence_id == sequence_id for one in self._prefixes.latest_first())

    # -- the end -------------------------------------------------------------------------------------------------------------

    def at_end(self, generation: Generation) -> None:
        """A request is over: the sequence that it leaves stays, if it may."""
        kept, generation.kept = generation.kept, None
        if kept is not None and (self._closed or not self._prefixes.keep(kept)):
            self._free([kept])

    def leave(self, running: Running, at_s: float) -> list[tuple[Running, Route]]:
        """A request is over, and waits for nobody any more. Returns: those who waited for it, as `ripe`."""
        waiting = self.ripe(running)
        entry = self._entries.pop(running, None)
        if entry is not None:
            self._settle(entry)
            if entry.waits is not None:
                self._n_waiting -= 1
                self._prefixes.waited.add(at_s - entry.since_s)
        return waiting

    def routes_changed(self) -> None:
        """What is on routes that do not stand any more is lost."""
        routes_of = cache(self._routes)  # once for a model, not once for each of its kept sequences
        self._free(self._prefixes.drop(lambda kept: kept.route not in routes_of(kept.route.model_id)))

    def node_lost(self, node_id: str) -> None:
        """A node is gone, and with it what was kept there."""
        self._free(self._prefixes.drop(lambda kept: node_id in kept.route.node_ids))

    def close(self) -> None:
        """The coordinator stops: nothing more is kept."""
        self._closed = True

    def free_all(self) -> None:
        """Nobody will come any more for what is kept."""
        self._free(self._prefixes.drop(lambda _kept: True))

    def _settle(self, entry: _Entry) -> None:
        """What it copied is its own now, or not wanted any more."""
        if entry.copies is not None:
            self._prefixes.unpin(*entry.copies)
            self._n_copying -= 1
            entry.copies = None

    def _set_awaited(self) -> None:
        awaited = {one.waits.number for one in self._entries.values() if one.waits is not None}
        for running, one in self._entries.items():
            generation = running.generation
            is_copied = self._n_copying > 0 and self._prefixes.pinned(generation.sequence_id) > 0
            generation.is_awaited = one.number in awaited or is_copied

    def _free(self, lost: Sequence[Kept]) -> None:
        for kept in lost:
            for node_id in dict.fromkeys(kept.route.node_ids):
                with contextlib.suppress(UnreachableError):
                    self._send(node_id, FreeSequence(sequence_id=kept.sequence_id))


def _owners(entries: Mapping[Running, _Entry], model_id: str) -> Iterator[Owner]:
    """Yield the requests that have a sequence of which others may have a copy."""
    for running, entry in entries.items():
        generation = running.generation
        route = generation.route
        if route is None or route.model_id != model_id or generation.is_done or generation.spec.reading is not None:
            continue
        if generation.sequence_id:
            yield Owner(
                number=entry.number,
                route=route,
                sequence_id=generation.sequence_id,
                tokens=generation.prompt,
                n_ready=generation.n_ready,
                n_cold=generation.n_cold,
                copies=entry.copies,
            )
