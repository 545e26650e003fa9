"""Join tokens by a button. A token lets a machine in, which then sees what runs through it: so more is asked for than for a question to a model.

Two may make one: who holds a key that was made for it (`shardnet key add NAME --may-invite`), and the coordinator's own user on its own machine, who
could as well type `shardnet swarm invite` (docs/decisions/0011-web-page.md).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request

from shardnet.coordinator.page.same_user import is_own_user
from shardnet.errors import UsageError
from shardnet.log import get
from shardnet.messages import Address
from shardnet.swarm.addresses import is_loopback
from shardnet.swarm.api_keys import KeyRing
from shardnet.swarm.identity import SwarmIdentity
from shardnet.swarm.membership import invite

LIFETIME_S = 3600.0
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
"""Headers of a proxy: who is behind it nobody here knows."""

log = get("page")


@dataclass(frozen=True, slots=True)
class Asker:
    """What is known of who asks for a token.

    Attributes:
        is_forwarded: a proxy stands in between.
        is_same_origin: no page of another site asks, nor one that has its own name for this machine.
    """

    has_inviting_key: bool
    is_own_user: bool
    is_forwarded: bool
    is_same_origin: bool

    def check(self) -> None:
        """Raises: UsageError, with what to do, if they may make no token."""
        if self.has_inviting_key:
            return
        if not (self.is_own_user and self.is_same_origin) or self.is_forwarded:
            raise UsageError(
                "a join token is made here by the coordinator's own user, in a browser on its own machine, or with a key that may: make one with "
                "`shardnet key add NAME --may-invite`; `shardnet swarm invite` on the owner's machine prints a token too",
                http_status=403,
            )


async def who_asks(request: Request, keys: KeyRing) -> Asker:
    """Returns: what a request tells of who sent it."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    client, server = request.scope.get("client"), request.scope.get("server")
    own = client and server and await asyncio.to_thread(is_own_user, tuple(client), tuple(server))
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    try:
        here = is_loopback(
            urlsplit(f"//{host}").hostname or ""
        )  # a page that rebinds its name to this machine sends that name
    except ValueError:
        here = False
    return Asker(
        has_inviting_key=scheme.lower() == "bearer" and keys.may_invite(given.strip()),
        is_own_user=bool(own),
        is_forwarded=request.scope.get("http_version") == "1.0" or any(name in request.headers for name in FORWARDED),
        is_same_origin=here and origin in (None, f"http://{host}"),
    )


async def make_token(swarm: SwarmIdentity, enrol: Address | None) -> dict[str, Any]:
    """Returns: a new join token, and how it is used. Raises: UsageError where this coordinator takes in no machines; SettingsError."""
    if enrol is None:
        raise UsageError(
            "this coordinator takes in no machines: join tokens are made on the machine of the swarm's owner, with listen.enrol set",
            http_status=403,
        )
    token = await asyncio.to_thread(invite, swarm, enrol, lifetime_s=LIFETIME_S)
    log.info("join_token_made", address=str(enrol), lifetime_s=LIFETIME_S)
    return {
        "token": str(token),
        "address": str(enrol),
        "expires_at_s": token.expires_at_s,
        "only_this_machine": is_loopback(enrol.host),
    }
