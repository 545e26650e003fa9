"""Host and port: reading them from people, opening the socket, and remembering where this machine's coordinator is.

Several coordinators may run of one home, and end in any order. So each also writes its addresses beside its identity, whose lock says that it runs.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import suppress
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from shardnet.errors import SettingsError, UnreachableError, UsageError
from shardnet.hosts import addresses_of, take_both_families
from shardnet.messages import Address
from shardnet.shards import Frozen
from shardnet.swarm.home import Home, is_held, make_folder, read_records, write_records

PORT_TRIES = 16
"""For a port that is free at both loopback addresses."""

HostPort = tuple[str, int]
"""An address to listen at; port 0 lets the system choose."""


class CoordinatorAddresses(Frozen):
    """Where a coordinator is reached."""

    nodes: Address | None = Field(default=None, description="TLS links of nodes")
    enrol: Address | None = Field(default=None, description="enrolment by join token")
    api: Address | None = Field(default=None, description="HTTP API")
    dht: Address | None = Field(default=None, description="the coordinator's DHT (UDP)")


_ADDRESSES: TypeAdapter[CoordinatorAddresses] = TypeAdapter(CoordinatorAddresses)


def write_coordinator_addresses(
    home: Home,
    *,
    nodes: Address | None = None,
    enrol: Address | None = None,
    api: Address | None = None,
    dht: Address | None = None,
    identity: Path | None = None,
) -> None:
    """Remember where the coordinator listens, so that nodes and commands in this home need not be told.

    Args:
        identity: the folder of the coordinator's identity, if it is one of this home.
    """
    addresses = CoordinatorAddresses(nodes=nodes, enrol=enrol, api=api, dht=dht)
    with home.locked():
        make_folder(home.swarm)
        write_records(home.coordinator, _ADDRESSES, addresses)
        if identity is not None:
            write_records(identity / home.coordinator.name, _ADDRESSES, addresses)


def read_coordinator_addresses(home: Home) -> CoordinatorAddresses:
    """Returns: where the coordinator of this home is that runs, of several the one that began last; without one, what was written last; all None
    where no coordinator ever ran and no swarm was joined. Not under `Home.locked()`: it takes that lock."""
    written = sorted(home.nodes.glob(f"*/{home.coordinator.name}"), key=_written_at, reverse=True)
    if written:
        with suppress(SettingsError), home.locked():  # a home that cannot be written to has no daemons that run
            for path in written:
                if is_held(path.with_name("lock")):
                    return read_records(path, _ADDRESSES, CoordinatorAddresses())
    return read_records(home.coordinator, _ADDRESSES, CoordinatorAddresses())


def _written_at(path: Path) -> int:
    """Returns: nanoseconds since 1970; 0 if it has gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def parse_host_port(text: str, *, what: str = "address") -> HostPort:
    """Returns: `("127.0.0.1", 7070)` of `127.0.0.1:7070`, `("::1", 0)` of `[::1]:0`.

    Raises: UsageError naming `what` was being read.
    """
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    # isdecimal alone would take other scripts' digits too
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise UsageError(f"{what} {text!r} is not HOST:PORT, as in 192.168.1.10:7070 or [::1]:7070")
    return host, int(port)


def parse_address(text: str, *, what: str = "address") -> Address:
    """Returns: an address that can be dialled. Raises: UsageError, for port 0 too."""
    host, port = parse_host_port(text, what=what)
    try:
        return Address(host=host, port=port)
    except ValidationError:
        raise UsageError(f"{what} {text!r} cannot be dialled: it needs a host and a port from 1 to 65535") from None


def is_loopback(host: str) -> bool:
    """True if only this machine can dial `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_wildcard(host: str) -> bool:
    """True for 0.0.0.0 and ::, at which one listens and which nobody can dial."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def open_listening_sockets(address: HostPort) -> list[socket.socket]:
    """Returns: non-blocking listening TCP sockets, all at one port: `[::]` takes IPv4 too, `localhost` is both loopback addresses, and another name
    all its addresses that this machine has.

    Raises: UnreachableError if the host is not known here; SettingsError if the port is taken or not allowed, or no address is one of this machine's.
    """
    shown = str_of(address)
    hosts = ["127.0.0.1", "::1"] if address[0] == "localhost" else addresses_of(address[0])
    if not hosts:
        raise UnreachableError(f"cannot listen at {shown}: this machine does not know the host {address[0]!r}")
    tries = 1 if address[1] else PORT_TRIES
    while True:
        opened, trouble = _open_all(hosts, address[1])
        if trouble is None or (opened and trouble.errno != errno.EADDRINUSE):
            return opened  # of a name that has an address elsewhere, or IPv6 where this machine has none
        for one in opened:
            one.close()
        tries -= 1
        if not tries or trouble.errno != errno.EADDRINUSE:
            raise SettingsError(
                f"cannot listen at {shown}: {(trouble.strerror or str(trouble)).lower()}; "
                "stop the program that has this port, or choose another"
            ) from trouble


def _open_all(hosts: list[str], port: int) -> tuple[list[socket.socket], OSError | None]:
    """Returns: those that could be opened, all at the port that the first one got; and what was wrong with another."""
    opened: list[socket.socket] = []
    trouble = None
    for host in hosts:
        try:
            opened.append(_open(host, port))
        except OSError as error:
            trouble = error
            if error.errno == errno.EADDRINUSE:
                break
        else:
            port = bound_address(opened[0]).port
    return opened, trouble


def _open(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listening.family == socket.AF_INET6:
            take_both_families(listening, host)
        listening.bind((host, port))
        listening.listen(256)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def str_of(address: HostPort) -> str:
    """Returns: host and port as people write them."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bound_address(listening: socket.socket) -> Address:
    """Returns: the real address of a listening socket."""
    host, port = listening.getsockname()[:2]
    return Address(host=host, port=port)
