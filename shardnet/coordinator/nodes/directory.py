"""The coordinator's place on the DHT: where its nodes begin, and where those that know nothing find it."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shardnet.dht.kademlia_directory import KademliaDirectory
from shardnet.dht.settings import DhtSettings
from shardnet.errors import SettingsError
from shardnet.messages import Address
from shardnet.swarm.identity import Identity
from shardnet.swarm.signer import IdentitySigner

PEERS_FILE = "dht.json"


@asynccontextmanager
async def open_directory(
    identity: Identity, settings: DhtSettings, nodes_at: Address
) -> AsyncIterator[KademliaDirectory]:
    """Take part in the DHT; on the way out this coordinator's announcement is withdrawn.

    Args:
        settings: an empty `listen_host` follows `nodes_at`, where nodes join.
    Raises: SettingsError if the UDP port is taken.
    """
    settings = settings.model_copy(update={"listen_host": settings.listen_host or nodes_at.host})
    state_file = identity.key_path.parent / PEERS_FILE
    directory = KademliaDirectory(
        settings,
        IdentitySigner(identity),
        identity.swarm.swarm_key,
        state_file,
        revoked=lambda: identity.revoked,
    )
    try:
        await directory.__aenter__()
    except SettingsError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"UDP port {settings.listen_port} on {settings.listen_host} is in use; choose another with --dht-port"
            ) from error
        raise
    try:
        yield directory
    finally:
        await directory.close()
