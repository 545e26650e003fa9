"""Where the coordinator can be found: the ports for nodes, newcomers, HTTP clients and the DHT, and who is told of them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from shardnet.coordinator.nodes.directory import open_directory
from shardnet.coordinator.nodes.settings import CoordinatorDhtSettings, ListenSettings
from shardnet.dht.kademlia_directory import KademliaDirectory
from shardnet.errors import SettingsError, UsageError
from shardnet.log import get
from shardnet.messages import Address
from shardnet.swarm.addresses import (
    HostPort,
    is_loopback,
    is_wildcard,
    parse_host_port,
    write_coordinator_addresses,
)
from shardnet.swarm.enrol_service import EnrolmentServer
from shardnet.swarm.home import Home
from shardnet.swarm.identity import Identity
from shardnet.swarm.whereabouts import Whereabouts, advertised_address
from shardnet.transport import HelloHandler, listen

log = get("coordinator")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The addresses that the settings ask for."""

    nodes: HostPort
    api: HostPort
    enrol: HostPort | None
    advertised: Address | None = None

    @classmethod
    def of(cls, where: ListenSettings) -> Wanted:
        """Raises: SettingsError if one is no address."""
        return cls(
            nodes=parse_host_port(where.nodes, what="listen.nodes"),
            api=parse_host_port(where.api, what="listen.api"),
            enrol=parse_host_port(where.enrol, what="listen.enrol") if where.enrol else None,
            advertised=advertised_address(where.advertise, "listen.advertise") if where.advertise else None,
        )


@dataclass(frozen=True, slots=True)
class Doors:
    """All of them, open."""

    nodes: Address
    api: Address
    enrol: Address | None
    dht: Address | None
    directory: KademliaDirectory | None
    advertised: Address | None = None

    @property
    def addresses(self) -> dict[str, Address | None]:
        """Returns: `nodes`, `enrol`, `api`, `dht`."""
        return {"nodes": self.nodes, "enrol": self.enrol, "api": self.api, "dht": self.dht}

    @property
    def n_dht_contacts(self) -> int | None:
        """Returns: members that it hears on the DHT; None where it takes no part."""
        return self.directory.stats().contacts if self.directory is not None else None

    def write_down(self, home: Home, identity: Identity) -> None:
        """Tell the commands of this machine. Blocking. Raises: SettingsError, NoRoomError."""
        where = {what: _dialable(address) for what, address in self.addresses.items()}
        write_coordinator_addresses(home, **where, identity=identity.key_path.parent)

    def log_them(self, *, epoch: int, has_key: bool) -> None:
        """Tell whoever watches."""
        log.info("coordinator_listening", address=str(self.nodes), epoch=epoch)
        if self.enrol:
            log.info("enrolment_listening", address=str(self.enrol))
        log.info("api_listening", address=str(self.api))
        if is_loopback(self.nodes.host):
            log.info("next_node", address=str(self.nodes))
        elif self.enrol:
            log.info("next_machine", enrol_port=self.enrol.port)
        if not is_loopback(self.api.host) and not has_key:
            log.warning("api_open_to_everybody", address=str(self.api), advice="set api.key, or listen on 127.0.0.1")

    async def be_found(self, a_node: Callable[[], str | None]) -> None:
        """Announce the coordinator on the DHT, as far as others can reach it, and again when that is elsewhere; until cancelled.

        Args:
            a_node: the IP address of a node on another machine. A machine in several networks is announced at the address in that one's.
        """
        directory = self.directory
        if directory is None:
            return
        moved = asyncio.Event()
        whereabouts = Whereabouts(self.advertised, a_node, moved.set, setting="listen.advertise")
        await whereabouts.settle(self.nodes)

        async def say() -> None:
            where = whereabouts.address
            try:
                await directory.move((where.host, where.port) if where is not None else None)
            except UsageError as error:
                log.warning("coordinator_not_announced", reason=str(error))

        await directory.announce_coordinator(address=None)
        await say()
        following = asyncio.create_task(whereabouts.follow(), name="whereabouts")
        try:
            while True:
                await moved.wait()
                moved.clear()
                await say()
        finally:
            following.cancel()


async def open_doors(
    resources: AsyncExitStack,
    wanted: Wanted,
    api: Address,
    dht_settings: CoordinatorDhtSettings,
    home: Home,
    identity: Identity,
    on_hello: HelloHandler,
) -> Doors:
    """Open every port but the HTTP API's, which is open at `api`; `resources` closes them. Newcomers are let in only by the owner's machine.

    Raises: SettingsError, with the flag to change, if a port is taken.
    """
    try:
        nodes = (await resources.enter_async_context(await listen(identity, wanted.nodes, on_hello))).address
    except SettingsError as error:
        raise port_error(error, wanted.nodes, "--listen") from error
    enrol: Address | None = None
    if wanted.enrol is not None and identity.is_owner:
        try:
            server = await resources.enter_async_context(EnrolmentServer(home, identity, wanted.enrol))
        except SettingsError as error:
            raise port_error(error, wanted.enrol, "--enrol") from error
        enrol = server.address
    directory: KademliaDirectory | None = None
    dht: Address | None = None
    if dht_settings.enabled:
        directory = await resources.enter_async_context(open_directory(identity, dht_settings, nodes))
        host, port = directory.address
        dht = Address(host=host, port=port)
    return Doors(nodes=nodes, api=api, enrol=enrol, dht=dht, directory=directory, advertised=wanted.advertised)


def port_error(error: SettingsError, address: HostPort, flag: str) -> SettingsError:
    """Returns: the error, with the flag that chooses another port where this one is taken."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
        return SettingsError(
            f"port {address[1]} on {address[0]} is in use; choose another with {flag}, unless it is your own coordinator that runs there"
        )
    return error


def _dialable(address: Address | None) -> Address | None:
    """Where commands of this machine reach a listener that listens everywhere."""
    if address is None or not is_wildcard(address.host):
        return address
    return Address(host="::1" if ":" in address.host else "127.0.0.1", port=address.port)
