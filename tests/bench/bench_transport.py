"""What one link costs: handshakes, round trips and bulk transfer, TLS 1.3 over loopback, both ends in processes of their own.

    python tests/bench/bench_transport.py [--seconds 2] [--loop uvloop|asyncio]

Prints one JSON line. Warm: each figure comes after a hundred round trips that are not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from shardnet.messages import (
    PROTOCOL_VERSION,
    Address,
    AnyMessage,
    Done,
    ExecuteTask,
    Hello,
    Ping,
    Sampling,
    StageRef,
    Welcome,
)
from shardnet.shards import Dtype, TensorSpec
from shardnet.swarm.home import Home
from shardnet.swarm.identity import claim_identity
from shardnet.transport import Connection, dial, listen
from shardnet.wire import Frame

COMMAND = "0" * 16
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


def serve(home: Path, loop: str, port: Any) -> None:
    """The other end: echoes tasks, counts pings, answers the ping with id f...f when all before it have arrived."""

    async def main() -> None:
        identity = claim_identity(Home(home), "coordinator", "coordinator")
        gone = asyncio.Event()

        def on_hello(connection: Connection, _hello: Hello) -> Welcome:
            def on_frame(frame: Frame[AnyMessage]) -> None:
                if isinstance(frame.message, ExecuteTask):
                    connection.send(frame.message, frame.payloads)
                elif isinstance(frame.message, Ping) and frame.message.command_id == "f" * 16:
                    connection.send(Done(command_id=COMMAND))

            connection.set_handler(on_frame, lambda _: gone.set() if connection.peer.name == "last" else None)  # type: ignore[union-attr]
            return Welcome(protocol=PROTOCOL_VERSION, node_id=identity.node_id)

        async with await listen(identity, ("127.0.0.1", 0), on_hello) as listener:
            port.put(listener.address.port)
            await gone.wait()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


def task_of(hidden_bytes: int) -> tuple[ExecuteTask, list[bytes]]:
    """Returns: a decode step of two stages with a hidden state of that many bytes."""
    route = tuple(
        StageRef(node_id="a" * 40, address=Address(host="127.0.0.1", port=7070), first_shard=i, end_shard=i + 1)
        for i in range(2)
    )
    tensors = (
        TensorSpec(name="tokens", dtype=Dtype.INT32, shape=(1,)),
        TensorSpec(name="hidden", dtype=Dtype.FLOAT32, shape=(1, hidden_bytes // 4)),
    )
    task = ExecuteTask(
        command_id=COMMAND,
        deadline_s=60.0,
        epoch=1,
        model_id="b" * 64,
        sequence_id=COMMAND,
        position=100,
        n_tokens=1,
        route=route,
        stage=1,
        samples=True,
        sampling=Sampling(),
        tensors=tensors,
    )
    return task, [bytes(4), bytes(hidden_bytes)]


async def measure(home: Path, port: int, seconds: float) -> dict[str, float]:
    """Returns: the figures, with units in their names."""
    identity = claim_identity(Home(home), "node", "node")
    address = Address(host="127.0.0.1", port=port)
    hello = Hello(protocol=PROTOCOL_VERSION, node_id=identity.node_id, role="node")
    figures: dict[str, float] = {}

    times = []
    for _ in range(50):
        began = time.perf_counter()
        connection = await dial(identity, address, hello)
        times.append(time.perf_counter() - began)
        await connection.close()
    figures["connect_and_greet_p50_ms"] = statistics.median(times) * 1e3

    connection = await dial(identity, address, hello.model_copy(update={"name": "last"}))
    answered: asyncio.Future[None]

    def on_frame(_frame: Frame[AnyMessage]) -> None:
        answered.set_result(None)

    connection.set_handler(on_frame, lambda _: None)
    loop = asyncio.get_running_loop()
    for name, hidden_bytes in (("task_2304", 2304), ("task_16k", 16_384)):
        task, payloads = task_of(hidden_bytes)
        times = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            answered = loop.create_future()
            began = time.perf_counter()
            connection.send(task, payloads)
            await answered
            times.append(time.perf_counter() - began)
        times = sorted(times[100:])
        figures[f"{name}_round_trip_p50_us"] = times[len(times) // 2] * 1e6
        figures[f"{name}_round_trip_p99_us"] = times[len(times) * 99 // 100] * 1e6

    for name, size in (("1mb", 1 << 20), ("8mb", 8 << 20)):
        bulk = Ping(command_id=COMMAND, tensors=(TensorSpec(name="padding", dtype=Dtype.FLOAT32, shape=(size // 4,)),))
        data = bytes(size)
        count, answered, began = 0, loop.create_future(), time.perf_counter()
        while time.perf_counter() - began < seconds:
            connection.send(bulk, [data])
            while connection.queued_bytes > 1 << 20:  # noqa: ASYNC110  (it is the speed of the link that counts)
                await asyncio.sleep(0)
            count += 1
        connection.send(Ping(command_id="f" * 16))
        await answered
        figures[f"bulk_{name}_mb_per_s"] = count * size / (time.perf_counter() - began) / 1e6
    await connection.close()
    identity.release()
    return figures


def main() -> None:
    """Run both ends and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--loop", choices=sorted(LOOPS), default="uvloop")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        port = spawn.Queue()
        server = spawn.Process(target=serve, args=(Path(folder), arguments.loop, port))
        server.start()
        try:
            with asyncio.Runner(loop_factory=LOOPS[arguments.loop]) as runner:
                figures = runner.run(measure(Path(folder), port.get(timeout=30), arguments.seconds))
        finally:
            server.join(5)
            server.kill()
    rounded = {name: round(value, 1) for name, value in figures.items()}
    print(json.dumps({"bench": "transport", "loop": arguments.loop, "python": platform.python_version()} | rounded))


if __name__ == "__main__":
    main()
