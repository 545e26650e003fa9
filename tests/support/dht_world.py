"""Identities, clocks and small networks of real directories on loopback, for the DHT's tests and bench."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from shardnet.dht.kademlia_directory import KademliaDirectory
from shardnet.dht.settings import DhtSettings

SWARM_KEY = bytes(range(32))
MODEL = "ab" * 32
OTHER_MODEL = "cd" * 32


class KeySigner:
    """An identity in memory; a random one, or the one that belongs to a number, for tests that depend on who is near whom."""

    def __init__(self, number: int | None = None) -> None:
        curve = ec.SECP256R1()
        self._private = ec.generate_private_key(curve) if number is None else ec.derive_private_key(number, curve)
        self._spki = self._private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def node_id(self) -> str:
        return hashlib.sha256(self._spki).hexdigest()[:40]

    @property
    def public_key_bytes(self) -> bytes:
        return self._spki

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data, ec.ECDSA(hashes.SHA256()))


class FakeClock:
    """Unix seconds that stand still until told."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def quick_settings(bootstrap: Sequence[str] = (), **changes: object) -> DhtSettings:
    """The defaults, but for what a test says."""
    changes = {name: value for name, value in changes.items() if name in DhtSettings.model_fields}
    return DhtSettings.model_validate({"bootstrap": tuple(bootstrap)} | changes)


class World:
    """Directories of one swarm in this process."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.clock = clock
        self.nodes: list[KademliaDirectory] = []
        self.logs: list[MutableMapping[str, Any]] = []
        self.signers: dict[KademliaDirectory, KeySigner] = {}

    def make(
        self,
        bootstrap: Sequence[str] | None = None,
        *,
        signer: KeySigner | None = None,
        clock: Callable[[], float] | None = None,
        swarm_key: bytes = SWARM_KEY,
        previous: Sequence[bytes] = (),
        **changes: object,
    ) -> KademliaDirectory:
        """A directory that is not started; by default it asks the first one."""
        if bootstrap is None:
            bootstrap = [entry_of(self.nodes[0])] if self.nodes else []
        signer = signer or KeySigner()
        directory = KademliaDirectory(
            quick_settings(bootstrap, **changes),
            signer,
            swarm_key,
            self.folder / f"{signer.node_id}.json",
            previous_swarm_keys=previous,
            clock=clock or self.clock,
        )
        self.signers[directory] = signer
        return directory

    async def start(self, directory: KademliaDirectory) -> KademliaDirectory:
        """Start one; it is closed with the world."""
        await directory.__aenter__()
        self.nodes.append(directory)
        return directory

    async def grow(self, count: int, **changes: object) -> list[KademliaDirectory]:
        """Start `count` more and wait until every one has found company."""
        grown = [await self.start(self.make(**changes)) for _ in range(count)]  # type: ignore[arg-type]
        enough = min(len(self.nodes) - 1, 8, quick_settings(**changes).ksize)  # type: ignore[arg-type]
        await eventually(lambda: all(node.stats().contacts >= enough for node in self.nodes))
        return grown

    async def kill(self, *directories: KademliaDirectory) -> None:
        """All at once, without a word to anybody."""
        await asyncio.gather(*(directory.close(leave=False) for directory in directories))
        self.nodes = [node for node in self.nodes if node not in directories]

    def id_of(self, directory: KademliaDirectory) -> str:
        return self.signers[directory].node_id


@asynccontextmanager
async def world(folder: Path, clock: Callable[[], float] = time.time) -> AsyncIterator[World]:
    """A world whose end is checked: no exception reached the event loop, and no task is left."""
    loop = asyncio.get_running_loop()
    failures: list[dict[str, object]] = []
    before = asyncio.all_tasks()
    loop.set_exception_handler(lambda _loop, context: failures.append(context))
    made = World(folder, clock)
    try:
        with capture_logs() as logs:
            made.logs = logs
            yield made
    finally:
        await asyncio.gather(*(node.close(leave=False) for node in made.nodes))
        for _ in range(3):
            await asyncio.sleep(0)
        loop.set_exception_handler(None)
    assert failures == [], failures
    assert [line for line in logs if line["event"] == "dht_task_failed"] == []
    assert asyncio.all_tasks() - before == set()


def entry_of(directory: KademliaDirectory) -> str:
    host, port = directory.address
    return f"{host}:{port}"


async def eventually(claim: Callable[[], bool | Awaitable[bool]], within_s: float = 60) -> None:
    """Wait until the claim holds; fail when time is up."""
    deadline = time.monotonic() + within_s
    while True:
        result = claim()
        if result if isinstance(result, bool) else await result:
            return
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.01)
