"""What this machine says of IP addresses: which are its own, by which it reaches others, and how sockets write them. Sends nothing."""

from __future__ import annotations

import errno
import ipaddress
import socket
from functools import lru_cache
from typing import Any

ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Documentation addresses (RFC 5737, RFC 3849): nobody has them, and the routing table answers for them as for any far place."""


@lru_cache(maxsize=4096)
def plain_host(host: str) -> str:
    """Returns: `host` as a socket reports it, with a mapped IPv4 address and a zone written plainly."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def is_ours(where: tuple[Any, ...]) -> bool:
    """Returns: False if this machine has not, or no longer, the address of `where`: (host, ...) as a socket's own name has it."""
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((where[0], 0, *where[2:]))
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EINVAL, errno.ENODEV)
    return True


def take_both_families(sock: socket.socket, host: str) -> None:
    """Have an IPv6 socket that will listen at `::` take IPv4 too, whatever the system's default is; at any other address it takes IPv6 alone.

    Raises: OSError, at `::` on a system that cannot do that: better none than one that half of the peers reach.
    """
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not ipaddress.ip_address(host).is_unspecified))


def own_address(toward: str | None = None, *, ipv6: bool = True) -> str | None:
    """Returns: the address by which this machine reaches another one; None if it cannot.

    Args:
        toward: its IP address; None: any far place, over IPv4 where there is that.
        ipv6: False: only an IPv4 address is of use.
    """
    if toward is not None:
        toward = plain_host(toward)
        families = [socket.AF_INET6 if ":" in toward else socket.AF_INET]
    else:
        families = [socket.AF_INET, socket.AF_INET6]
    for family in families:
        if family == socket.AF_INET6 and not ipv6:
            continue
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((toward or ELSEWHERE[family], 9))
                return plain_host(probe.getsockname()[0])
        except OSError:
            continue
    return None


def addresses_of(host: str, *, ipv6: bool = True) -> list[str]:
    """Returns: the IP addresses of a host name, or of an address itself, best first; none if it is unknown now. Blocks: call it in a thread."""
    try:
        found = socket.getaddrinfo(
            host, None, type=socket.SOCK_STREAM, family=socket.AF_UNSPEC if ipv6 else socket.AF_INET
        )
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(plain_host(str(info[4][0])) for info in found))
