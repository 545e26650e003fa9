"""Names that no host can have, as a slip of the finger makes them, are addresses where nobody is."""

from __future__ import annotations

import pytest

from shardnet.dht.server import resolve
from shardnet.messages import Address
from shardnet.transport.dialer import connect

NAMES = ("192.168.1..10", "a" * 64 + ".example", ".local")


@pytest.mark.parametrize("name", NAMES)
async def test_a_directory_goes_on_without_it(name: str) -> None:
    assert await resolve(f"{name}:7700", ipv6=False) == []


@pytest.mark.parametrize("name", NAMES)
async def test_a_dialer_says_that_nothing_is_there(name: str) -> None:
    with pytest.raises(OSError, match=r"name|No address|not known"):
        await connect(Address(host=name, port=7700))
