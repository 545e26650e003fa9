"""Host and port: reading them from people, opening the socket, and remembering where this machine's coordinator is.

Several coordinators may run of one home, and end in any order. So each also writes its addresses beside its identity, whose lock says that it runs.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from shardnet.errors import SettingsError, UnreachableError, UsageError
from shardnet.messages import Address
from shardnet.shards import Frozen
from shardnet.swarm.home import Home, is_held, make_folder, read_records, write_records

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


def reachable(listening: Address) -> Address | None:
    """Returns: where others dial a daemon that listens there: the address itself, for a wildcard this machine's own; None without a network."""
    if not is_wildcard(listening.host):
        return listening
    host = own_address()
    return Address(host=host, port=listening.port) if host is not None else None


def own_address() -> str | None:
    """Returns: the address by which this machine reaches the network; None without one. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address: only the routing table is asked
        except OSError:
            return None
        return str(probe.getsockname()[0])


def open_listening_socket(address: HostPort) -> socket.socket:
    """Returns: a non-blocking listening TCP socket.

    Raises: UnreachableError if the host is not one of this machine's; SettingsError if the port is taken or not allowed.
    """
    host, port = address
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UnreachableError(f"cannot listen at {shown}: this machine does not know the host {host!r}") from error
    family, kind, number, _, where = found[0]
    listening = socket.socket(family, kind, number)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(where)
        listening.listen(256)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise SettingsError(
            f"cannot listen at {shown}: {(error.strerror or str(error)).lower()}; "
            "stop the program that has this port, or choose another"
        ) from error
    return listening


def bound_address(listening: socket.socket) -> Address:
    """Returns: the real address of a listening socket."""
    host, port = listening.getsockname()[:2]
    return Address(host=host, port=port)
