"""What one node adds to a step beside llama.cpp's arithmetic, by part, in microseconds: `python tests/bench/bench_node_hop.py`.

One real node daemon (its engine is a process of its own) between a coordinator and a next stage that this script plays over TLS on loopback, all
three on one uvloop event loop. The model is tiny, so that what is measured is everything else. Warm; medians; one decode step at a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from shardnet import log
from shardnet.ids import new_id
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.lifecycle import run_loop
from shardnet.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    ExecuteTask,
    Hello,
    Sampling,
    ShardOptions,
    ShardReady,
    StageRef,
    Welcome,
)
from shardnet.node.daemon import NodeDaemon
from shardnet.node.settings import NodeSettings
from shardnet.shards import Dtype, TensorSpec
from shardnet.swarm.home import Home
from shardnet.swarm.identity import claim_identity
from shardnet.transport import Connection, listen
from shardnet.wire import Frame
from tests.support.random_models import tiny_llama

N_STEPS, N_WARM = 400, 50
N_EMBD = 576
OPTIONS = ShardOptions(n_ctx=1024, n_seq=4, n_batch=64)


class Spans:
    """Time spent inside chosen functions."""

    def __init__(self) -> None:
        self.us: dict[str, list[float]] = {}

    def watch(self, owner: Any, name: str, label: str) -> None:
        inner = getattr(owner, name)
        spans = self.us.setdefault(label, [])

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                spans.append((time.perf_counter() - began) * 1e6)

        setattr(owner, name, timed)

    def median(self, label: str) -> float:
        return round(statistics.median(self.us[label][N_WARM:]), 1)


async def main(folder: Path) -> None:
    home = Home(folder / "home")
    whole = tiny_llama(folder / "tiny.gguf", n_layers=2, n_embd=N_EMBD, n_heads=9, n_kv_heads=3)
    _, manifest = await asyncio.to_thread(split_model, plan_split(whole, CutRequest(n_shards=2)), folder / "cache")
    with (
        claim_identity(home, "coordinator", "coordinator") as us,
        claim_identity(home, "next", "node") as next_identity,
        claim_identity(home, "node", "node") as identity,
    ):
        joined: asyncio.Future[tuple[Connection, Hello]] = asyncio.get_running_loop().create_future()
        answers: asyncio.Queue[AnyMessage] = asyncio.Queue()
        arrived: asyncio.Queue[tuple[ExecuteTask, float]] = asyncio.Queue()

        def on_node(connection: Connection, hello: Hello) -> Welcome:
            connection.set_handler(lambda frame: answers.put_nowait(frame.message), lambda _error: None)
            joined.set_result((connection, hello))
            return Welcome(protocol=PROTOCOL_VERSION, node_id=us.node_id, epoch=1)

        def on_task(frame: Frame[AnyMessage]) -> None:
            if isinstance(frame.message, ExecuteTask):
                arrived.put_nowait((frame.message, time.perf_counter()))

        def on_next(connection: Connection, _hello: Hello) -> Welcome:
            connection.set_handler(on_task, lambda _error: None)
            return Welcome(protocol=PROTOCOL_VERSION, node_id=next_identity.node_id)

        async with (
            await listen(us, ("127.0.0.1", 0), on_node) as at,
            await listen(next_identity, ("127.0.0.1", 0), on_next) as next_at,
        ):
            settings = NodeSettings.model_validate(
                {
                    "node": {
                        "coordinator": str(at.address),
                        "models_cache": folder / "cache",
                        "heartbeat_interval_s": 30,
                    },
                    "inference": {"threads": 1},
                }
            )
            daemon = NodeDaemon(settings, identity)
            spans = Spans()
            spans.watch(daemon._answering, "from_coordinator", "frame_to_engine")
            spans.watch(daemon._tasks, "_stepped", "engine_to_next_node")
            spans.watch(daemon._links, "send", "of_which_send")
            living = asyncio.create_task(daemon.run())
            connection, _ = await joined
            await connection_load(connection, answers, manifest.model_id)
            route = (
                StageRef(node_id=identity.node_id, address=None, first_shard=0, end_shard=1),
                StageRef(node_id=next_identity.node_id, address=next_at.address, first_shard=1, end_shard=2),
            )
            template = ExecuteTask(
                tensors=(TensorSpec(name="tokens", dtype=Dtype.INT32, shape=(1,)),),
                command_id=new_id(),
                deadline_s=30,
                epoch=1,
                model_id=manifest.model_id,
                sequence_id=new_id(),
                position=0,
                n_tokens=1,
                route=route,
                stage=0,
                options=OPTIONS,
                samples=True,
                sampling=Sampling(),
            )
            for spent in spans.us.values():
                spent.clear()
            whole_us, compute_us, queue_us, engine_us = [], [], [], []
            token = np.array([5], dtype=np.int32).tobytes()
            for position in range(N_STEPS + N_WARM):
                message = template.model_copy(update={"position": position, "command_id": new_id()})
                began = time.perf_counter()
                connection.send(message, (token,))
                task, at_s = await arrived.get()
                if position >= N_WARM:
                    (timing,) = task.timings
                    whole_us.append((at_s - began) * 1e6)
                    compute_us.append(timing.compute_us)
                    queue_us.append(timing.queue_us)
                    engine_us.append(timing.engine_us)
            daemon.stop()
            await living
    print(
        json.dumps(
            {
                "bench": "node_hop",
                "steps": N_STEPS,
                "n_embd": N_EMBD,
                "send_to_arrival_us": round(statistics.median(whole_us), 1),
                "compute_us": round(statistics.median(compute_us), 1),
                "queue_us": round(statistics.median(queue_us), 1),
                "engine_handover_us": round(statistics.median(engine_us), 1),
                **{f"{label}_us": spans.median(label) for label in spans.us},
                "cpus": os.cpu_count(),
            }
        )
    )


async def connection_load(connection: Connection, answers: asyncio.Queue[AnyMessage], model_id: str) -> None:
    from shardnet.messages import LoadShard

    command = LoadShard(command_id=new_id(), deadline_s=30, model_id=model_id, shard_id=0, options=OPTIONS)
    connection.send(command)
    while True:
        answer = await answers.get()
        if isinstance(answer, ShardReady):
            return


if __name__ == "__main__":
    log.configure(level="warning")
    with tempfile.TemporaryDirectory() as scratch:
        run_loop(main(Path(scratch)))
