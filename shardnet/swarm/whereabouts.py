"""Where others reach this daemon: one IP address for joining, the DHT and transfers alike, looked at again and again, for machines move.

Knows names, the routing table and where the coordinator is. Refuses to dial: whether an address that stands here can be reached, its users find out.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

from shardnet.errors import UsageError
from shardnet.hosts import addresses_of, is_ours, own_address
from shardnet.log import get
from shardnet.messages import Address, Reach
from shardnet.swarm.addresses import is_loopback, is_wildcard, parse_address

LOOK_S = 1.0
RESOLVE_S = 10.0
"""Between two look-ups of a name that stands for this node, or for the coordinator."""
RESOLVE_TIMEOUT_S = 5.0

log = get("node")


@dataclass(frozen=True, slots=True)
class Place:
    """What decides where a node is reached.

    Attributes:
        listening: where it listens.
        advertised: what its user says instead, a host name perhaps. `setting`: where that was said.
        resolved: the IP addresses of that name now, best first.
        coordinator: the IP address of the coordinator, if one is known.
    """

    listening: Address
    advertised: Address | None = None
    resolved: tuple[str, ...] = ()
    coordinator: str | None = None
    setting: str = "node.advertise"


def reach_of(place: Place) -> Reach:
    """Returns: the address to tell others, and what is wrong with it. Asks the routing table; sends nothing."""
    listening, advertised = place.listening, place.advertised
    takes_ipv6 = ":" in listening.host
    if advertised is not None:
        if not place.resolved:
            return Reach(
                trouble=f"{place.setting} names {advertised.host}, which nothing here can resolve: correct it, or its DNS entry"
            )
        named = next((host for host in place.resolved if (":" in host) <= takes_ipv6), place.resolved[0])
        own = None
        if is_loopback(named) and not (is_loopback(advertised.host) or is_loopback(listening.host)):
            # /etc/hosts gives a machine's own name a loopback address on that machine alone.
            own = own_address(place.coordinator, ipv6=takes_ipv6) or own_address(ipv6=takes_ipv6)
        return Reach(listen=Address(host=own or named, port=advertised.port))
    if is_wildcard(listening.host):
        local = place.coordinator is None or is_loopback(place.coordinator)
        host = None if local else own_address(place.coordinator, ipv6=takes_ipv6)
        host = host or own_address(ipv6=takes_ipv6)
        if host is not None:
            return Reach(listen=Address(host=host, port=listening.port))
        if local:  # no network: whoever there is, is here
            return Reach(listen=Address(host="::1" if listening.host == "::" else "127.0.0.1", port=listening.port))
        return Reach(trouble=f"this machine has no address by which others could dial {listening}")
    if is_loopback(listening.host) and place.coordinator is not None and not is_loopback(place.coordinator):
        return Reach(
            trouble=f"it listens at {listening}, which only its own machine can dial: start it with --listen 0.0.0.0:PORT, or set {place.setting}"
        )
    if not is_ours((listening.host,)):
        return Reach(
            trouble=f"it listens at {listening}, and this machine does not have that address any more: "
            "start it with --listen 0.0.0.0:PORT, which follows the machine"
        )
    return Reach(listen=listening)


class Whereabouts:
    """Follows the machine.

    Args:
        advertised: what the node's user says of its address; checked before.
        coordinator_host: where the coordinator is, as far as known: a name or an IP address.
        moved: called when the node is somewhere else than it was.

    Attributes:
        reach: what to tell others now.
    """

    def __init__(
        self,
        advertised: Address | None,
        coordinator_host: Callable[[], str | None],
        moved: Callable[[], object],
        *,
        setting: str = "node.advertise",
    ) -> None:
        self._advertised = advertised
        self._moved = moved
        self._setting = setting
        self._coordinator_host = coordinator_host
        self._listening: Address | None = None
        self._resolved: dict[str, tuple[tuple[str, ...], float]] = {}
        """Name -> its IP addresses, best first, and when they were looked up."""
        self.reach = Reach()

    @property
    def address(self) -> Address | None:
        """Returns: where others dial this node now; None: nowhere."""
        return self.reach.listen

    async def settle(self, listening: Address) -> None:
        """The node listens now."""
        self._listening = listening
        self.reach = await self._find(listening)

    async def look(self) -> None:
        """Look again."""
        assert self._listening is not None
        before, self.reach = self.reach, await self._find(self._listening)
        if self.reach.listen != before.listen:
            now = str(self.reach.listen or "nowhere")
            if before.listen is None or is_loopback(before.listen.host):
                log.info("node_reached_at", now=now)  # nobody elsewhere ever reached it there
            else:
                log.info("node_moved", before=str(before.listen), now=now)
            self._moved()
        if self.reach.trouble and self.reach.trouble != before.trouble:
            log.warning("node_not_dialable", reason=self.reach.trouble)

    async def follow(self) -> None:
        """Look every second, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def _find(self, listening: Address) -> Reach:
        resolved = () if self._advertised is None else await self._resolve(self._advertised.host)
        coordinator = self._coordinator_host()
        if coordinator is not None and not _is_ip(coordinator):
            coordinator = next(iter(await self._resolve(coordinator)), None)
        return reach_of(Place(listening, self._advertised, resolved, coordinator, self._setting))

    async def _resolve(self, host: str) -> tuple[str, ...]:
        now_s = asyncio.get_running_loop().time()
        known, at_s = self._resolved.get(host, ((), 0.0))
        if known and (_is_ip(host) or now_s - at_s < RESOLVE_S):
            return known
        found = tuple(await _look_up(host)) or known  # a name server that is away changes nothing
        self._resolved[host] = found, now_s
        return found


def advertised_address(text: str, setting: str = "node.advertise") -> Address:
    """Returns: what `node.advertise` says. Raises: UsageError for what nobody can dial."""
    address = parse_address(text, what=setting)
    if is_wildcard(address.host):
        raise UsageError(f"{setting} {text!r} cannot be dialled: name the address that other nodes are to use")
    return address


async def _look_up(host: str) -> list[str]:
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            return await asyncio.to_thread(addresses_of, host)
    except TimeoutError:
        return []


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
