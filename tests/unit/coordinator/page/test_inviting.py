"""Who may make a join token by the page's button."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from shardnet.coordinator.page.inviting import Asker
from shardnet.coordinator.page.same_user import is_own_user, uid_in
from shardnet.errors import UsageError

TABLE = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 111 1 0 100 0 0 10 0\n"
    "   1: 0100007F:9C40 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1001        0 222 1 0 20 4 30 10 -1\n"
    "   2: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 333 1 0 20 4 30 10 -1\n"
)
HERE = Asker(has_inviting_key=False, is_own_user=True, is_forwarded=False, is_same_origin=True)


def test_the_kernel_says_whose_a_connection_is() -> None:
    assert uid_in(TABLE, ("127.0.0.1", 40000), ("127.0.0.1", 8080)) == 1001
    assert uid_in(TABLE, ("127.0.0.1", 40001), ("127.0.0.1", 8080)) is None
    assert uid_in(TABLE + "broken\n", ("10.0.0.1", 1), ("10.0.0.2", 2)) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_connection_of_our_own_is_known_as_such(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), host, 0, family=family)
    except OSError:
        pytest.skip(f"no {host} on this machine")
    async with server:
        to = server.sockets[0].getsockname()[:2]
        with socket.create_connection(to) as client:
            mine = client.getsockname()[:2]
            assert is_own_user(mine, to) is sys.platform.startswith("linux")
            assert not is_own_user((mine[0], mine[1] ^ 1), to)


@pytest.mark.parametrize("client", ["10.1.2.3", "testclient", "::ffff:127.0.0.1", ""])
def test_who_does_not_come_over_loopback_is_somebody_else(client: str) -> None:
    assert not is_own_user((client, 1), ("127.0.0.1", 8080))


def test_the_coordinators_own_user_and_who_holds_a_key_for_it_may() -> None:
    HERE.check()
    Asker(has_inviting_key=True, is_own_user=False, is_forwarded=True, is_same_origin=False).check()


@pytest.mark.parametrize(
    "asker",
    [
        Asker(has_inviting_key=False, is_own_user=False, is_forwarded=False, is_same_origin=True),
        Asker(has_inviting_key=False, is_own_user=True, is_forwarded=True, is_same_origin=True),
        Asker(has_inviting_key=False, is_own_user=True, is_forwarded=False, is_same_origin=False),
    ],
    ids=["another user", "behind a proxy", "a page of another site"],
)
def test_nobody_else_may_and_is_told_what_to_do(asker: Asker) -> None:
    with pytest.raises(UsageError, match="--may-invite") as refused:
        asker.check()
    assert refused.value.facts["http_status"] == 403
