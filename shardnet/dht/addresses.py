"""IP addresses as the DHT writes them: 16 bytes, IPv4 mapped into IPv6; and which of them may be a peer at all."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from shardnet.errors import RemoteProtocolError

ADDRESS_BYTES = 16
_MAPPED = bytes(10) + b"\xff\xff"


@lru_cache(maxsize=4096)
def pack_host(host: str) -> bytes:
    """Returns: 16 bytes. Raises: ValueError if `host` is not an IP address."""
    address = ipaddress.ip_address(host)
    return _MAPPED + address.packed if address.version == 4 else address.packed


@lru_cache(maxsize=4096)
def unpack_host(packed: bytes) -> str:
    """Returns: the usual text of 16 packed bytes; mapped IPv4 comes out as IPv4.

    Raises: RemoteProtocolError (reason `address`) for one that no peer can have: unspecified, multicast, reserved.
    """
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    address = ipaddress.IPv4Address(packed[12:]) if packed[:12] == _MAPPED else ipaddress.IPv6Address(packed)
    if address.is_unspecified or address.is_multicast or (address.is_reserved and not address.is_loopback):
        raise RemoteProtocolError(f"{address} cannot be a peer's address", reason="address")
    return str(address)


@lru_cache(maxsize=4096)
def is_loopback(host: str) -> bool:
    """Returns: True for 127.0.0.0/8 and ::1. `host` is an IP address."""
    return ipaddress.ip_address(host).is_loopback
