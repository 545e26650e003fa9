"""Two members of one swarm, a stranger, and the event loops that the transport runs on."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from shardnet.errors import ShardnetError
from shardnet.messages import PROTOCOL_VERSION, AnyMessage, Hello, Welcome
from shardnet.shards import Dtype, TensorSpec
from shardnet.swarm.home import Home
from shardnet.swarm.identity import Identity, Role, claim_identity
from shardnet.transport import Connection
from shardnet.wire import Frame

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


def run(loop: str, main: Coroutine[Any, Any, None], *, within_s: float = 30) -> None:
    """Run `main` on a loop of that kind, in debug mode; fail if it takes too long or leaves a task behind."""

    async def bounded() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        async with asyncio.timeout(within_s):
            await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"
        assert not problems, problems

    with asyncio.Runner(loop_factory=LOOPS[loop], debug=True) as runner:
        runner.run(bounded())


class World:
    """`server` and `client` are of one swarm, `stranger` of another."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "swarm")
        self.other = Home(folder / "other")
        self.server = self.claim(self.home, "coordinator")
        self.client = self.claim(self.home, "node")
        self.stranger = self.claim(self.other, "node")
        self.frames: asyncio.Queue[Frame[AnyMessage]] = asyncio.Queue()
        self.accepted: asyncio.Queue[Connection] = asyncio.Queue()
        self.ends: list[ShardnetError] = []
        self.hellos: list[Hello] = []

    def claim(self, home: Home, role: Role) -> Identity:
        return claim_identity(home, None, role)

    def close(self) -> None:
        for identity in (self.server, self.client, self.stranger):
            identity.release()

    def on_hello(self, connection: Connection, hello: Hello) -> Welcome:
        """A daemon that takes in everybody and collects what comes."""
        self.hellos.append(hello)
        connection.set_handler(self.frames.put_nowait, self.ends.append)
        self.accepted.put_nowait(connection)
        return self.welcome()

    def welcome(self) -> Welcome:
        return Welcome(protocol=PROTOCOL_VERSION, node_id=self.server.node_id, epoch=1)


def hello_of(identity: Identity, **change: Any) -> Hello:
    """Returns: what a node says first."""
    fields: dict[str, Any] = {
        "protocol": PROTOCOL_VERSION,
        "node_id": identity.node_id,
        "name": identity.name,
        "role": "node",
    }
    return Hello(**(fields | change))


async def until(happened: Callable[[], bool]) -> None:
    """Wait for what has no event of its own, in a test only; the test's own deadline bounds it."""
    while not happened():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def tensor(size: int) -> TensorSpec:
    """Returns: the description of `size` bytes of padding."""
    return TensorSpec(name="padding", dtype=Dtype.FLOAT32, shape=(size // 4,))


def plain_client(*, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """Returns: a TLS client that checks nothing and shows no certificate, as an attacker would use it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = version
    return context
