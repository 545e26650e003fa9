"""Where a node looks for its coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shardnet.dht.directory import Directory
from shardnet.errors import UnreachableError
from shardnet.ids import NodeId
from shardnet.messages import Address
from shardnet.node.links.meeting import find_coordinators
from shardnet.swarm.addresses import is_wildcard, read_coordinator_addresses
from shardnet.swarm.home import Home

DEFAULT_COORDINATOR = Address(host="127.0.0.1", port=7700)


class CoordinatorFinder:
    """Names one address after the other, until one of them answers.

    Args:
        home: where a coordinator on this machine writes down its address.
        given: the address that counts; None: look for one. When nothing answers there, the coordinator that took this node in may be where it says
            on the DHT, and no other one.
        bootstrap: where the DHT was told to begin.

    Attributes:
        directory: this node's place on the DHT, once it has one.
    """

    def __init__(self, home: Home, given: Address | None, bootstrap: tuple[str, ...]) -> None:
        self._home = home
        self._given = given
        self._bootstrap = bootstrap
        self.directory: Directory | None = None
        self._dialled: Address | None = None
        self._dials = 0
        self._met: NodeId | None = None
        self._met_at: Address | None = None

    @property
    def host(self) -> str | None:
        """Returns: where the coordinator is, as far as known: where it was met last; before that, what was dialled last, or is to be dialled."""
        where = self._met_at or self._dialled or self._given
        return where.host if where is not None else None

    async def find(self) -> Address:
        """Returns: where to dial next: the address that was given, and in turn with it where the coordinator that was there says that it is now; else
        what a coordinator on this machine wrote down and what the DHT says, in turn.

        Raises: UnreachableError if only the DHT can tell, and names none yet.
        """
        if self._given is not None:
            found = [self._given]
            if self.directory is not None and self._met is not None and self._dials % 2:
                found += [one for one in await find_coordinators(self.directory, self._met) if one != self._given]
            return self._next(found)
        here = (await asyncio.to_thread(read_coordinator_addresses, self._home)).nodes
        found = [here] if here is not None else []
        if self.directory is not None and (here is None or self._dials):
            found += [address for address in await find_coordinators(self.directory) if address != here]
        if not found:
            if self._bootstrap:
                raise UnreachableError(
                    f"the DHT at {', '.join(self._bootstrap)} names no coordinator of this swarm yet"
                )
            found = [DEFAULT_COORDINATOR]
        return self._next(found)

    def _next(self, found: Sequence[Address]) -> Address:
        self._dialled = found[self._dials % len(found)]
        self._dials += 1
        return self._dialled

    def joined(self, node_id: NodeId, dht: Address | None) -> Address | None:
        """The address that was named last was right: the next search begins anew.

        Args:
            node_id: the coordinator's.
            dht: where it says that it takes part in the DHT.

        Returns: that, as seen from here.
        """
        self._dials, self._met, self._met_at = 0, node_id, self._dialled
        if dht is None or self._dialled is None or not is_wildcard(dht.host):
            return dht
        return Address(host=self._dialled.host, port=dht.port)
