"""Where a node looks for its coordinator."""

from __future__ import annotations

import asyncio

from shardnet.dht.directory import Directory
from shardnet.errors import UnreachableError
from shardnet.messages import Address
from shardnet.node.links.meeting import find_coordinators
from shardnet.swarm.addresses import is_wildcard, read_coordinator_addresses
from shardnet.swarm.home import Home

DEFAULT_COORDINATOR = Address(host="127.0.0.1", port=7700)


class CoordinatorFinder:
    """Names one address after the other, until one of them answers.

    Args:
        home: where a coordinator on this machine writes down its address.
        given: the only address that counts; None: look for one.
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

    @property
    def host(self) -> str | None:
        """Returns: where the coordinator is, as far as known: what was dialled last, or is to be dialled."""
        where = self._dialled or self._given
        return where.host if where is not None else None

    async def find(self) -> Address:
        """Returns: where to dial next: the address that was given; else what a coordinator on this machine wrote down and what the DHT says, in turn.

        Raises: UnreachableError if only the DHT can tell, and names none yet.
        """
        if self._given is not None:
            self._dialled = self._given
            return self._given
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
        self._dialled = found[self._dials % len(found)]
        self._dials += 1
        return self._dialled

    def joined(self, dht: Address | None) -> Address | None:
        """The address that was named last was right: the next search begins anew.

        Args:
            dht: where the coordinator says that it takes part in the DHT.

        Returns: that, as seen from here.
        """
        self._dials = 0
        if dht is None or self._dialled is None or not is_wildcard(dht.host):
            return dht
        return Address(host=self._dialled.host, port=dht.port)
