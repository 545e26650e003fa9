"""Acts on what `prefixes` decides: hands kept sequences to requests that begin like them, and frees on the nodes what is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cache

from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.pipeline import Generation
from shardnet.coordinator.requests.places import Places
from shardnet.coordinator.requests.prefixes import Kept, Prefixes
from shardnet.errors import UnreachableError
from shardnet.log import get
from shardnet.messages import FreeSequence

log = get("requests")


class Keeper:
    """Keeps sequences of answers that came to their end.

    Args:
        prefixes: those kept; None: none is ever.
        places: sequences that are in use, for which kept ones make room.
        routes: pipelines of a model that are ready now.
        send: to a node. Raises: PeerLost.
    """

    def __init__(
        self,
        prefixes: Prefixes | None,
        places: Places,
        routes: Callable[[str], list[Route]],
        send: Callable[[str, FreeSequence], None],
    ) -> None:
        self._prefixes = Prefixes() if prefixes is None else prefixes
        self._is_on = prefixes is not None
        self._places = places
        self._routes = routes
        self._send = send
        self._closed = False

    def accepts(self, model_id: str) -> bool:
        """False for a model whose sequences are not worth keeping."""
        return self._is_on and self._prefixes.accepts(model_id)

    def before_start(self, generation: Generation, route: Route) -> tuple[Kept, int] | None:
        """Returns: the sequence that a new request begins with, if one fits; else the least recently used make room on `route`."""
        found: tuple[Kept, int] | None = None
        if not generation.attempts and generation.spec.reading is None:
            free = [one for one in self._routes(route.model_id) if self._places.has_room(one)]
            found = self._prefixes.take(free, generation.spec.prompt, self._places.used)
        if found is None:
            self._free(self._prefixes.make_room(route, self._places.used))
        return found

    def note_first_token(self, generation: Generation) -> None:
        """A request has its first token: if it took a sequence over, that worked."""
        if generation.n_reused:
            self._prefixes.worked(generation.spec.model_id, generation.n_reused)

    def note_refusal(self, generation: Generation) -> None:
        """A step failed: if that was because a stage did not go on with the sequence taken over, others like it are lost."""
        if generation.was_refused and generation.route is not None:
            generation.was_refused = False
            log.debug("prefix_refused", model_id=generation.spec.model_id)
            self._free(self._prefixes.was_refused(generation.route))

    def at_end(self, generation: Generation) -> None:
        """A request is over: the sequence that it leaves stays, if it may."""
        kept, generation.kept = generation.kept, None
        if kept is not None and (self._closed or not self._prefixes.keep(kept)):
            self._free([kept])

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

    def _free(self, lost: Sequence[Kept]) -> None:
        for kept in lost:
            for node_id in dict.fromkeys(kept.route.node_ids):
                with contextlib.suppress(UnreachableError):
                    self._send(node_id, FreeSequence(sequence_id=kept.sequence_id))
