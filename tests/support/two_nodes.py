"""A coordinator and two nodes as processes, each node with one half of a model on its disk, as most tests of a whole swarm want them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from shardnet.bench.netem import Relays
from shardnet.bench.world import pin_process
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.local.processes import LocalSwarm
from shardnet.messages import Address
from tests.support.random_models import tiny_llama


@dataclass(frozen=True)
class Halves:
    """A model, whole and in two shards.

    Attributes:
        cache: the models cache with both of them, which the coordinator is told of.
        folder: where they lie in it.
    """

    name: str
    whole: Path
    cache: Path
    folder: Path

    def serve(self, swarm: LocalSwarm, relays: Relays | None = None, *arguments: str, pin: bool = False) -> None:
        """Start everything, and wait until the model is served.

        Args:
            relays: slow links, one to each node and one to the coordinator.
            arguments: of the coordinator.
            pin: each node has a core of its own.
        """
        self.start_coordinator(swarm, *arguments)
        join = None if relays is None else relays.add(Address(host="127.0.0.1", port=swarm.listen_port))
        for index in range(2):
            if relays is None or join is None:
                self.start_node(swarm, index)
            else:
                listen = Address(host="127.0.0.1", port=free_port())
                self.start_node(
                    swarm,
                    index,
                    *("--coordinator", str(join), "--listen", str(listen)),
                    env={"SHARDNET_NODE__ADVERTISE": str(relays.add(listen))},
                )
            if pin:
                pin_process(swarm.processes[f"node-{index}"].pid, index)
        swarm.wait_ready(60)

    def start_coordinator(self, swarm: LocalSwarm, *arguments: str) -> None:
        """Start the coordinator; also once more, when it was killed."""
        swarm.start_coordinator("--models-cache", str(self.cache), "--stages", "2", *arguments)

    def start_node(
        self,
        swarm: LocalSwarm,
        index: int,
        *arguments: str,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Start `node-0` or `node-1`; also once more, when it was killed. It has its own half and no other."""
        own = swarm.folder / f"node-{index}"
        target = own / "shards" / self.folder.name
        if not target.exists():
            target.mkdir(parents=True)
            for name in (f"shard-{index}.gguf", "tokenizer.gguf", "manifest.json"):
                os.link(self.folder / name, target / name)
        shard = ("--shard", f"{self.name}:{index}")
        swarm.start_node(f"node-{index}", own, *shard, "--threads", "1", *arguments, env=env, prefix=prefix)


def free_port() -> int:
    """Returns: a TCP port that nobody listens on now: where a relay has to know it before the node is there."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def halve(whole: Path, name: str, cache: Path, request: CutRequest | None = None) -> Halves:
    """Cut a model in two: as `split` does by itself, or as `request` says."""
    folder, _ = split_model(plan_split(whole, request or CutRequest(n_shards=2), name), cache)
    return Halves(name, whole, cache, folder)


def tiny_halves(folder: Path) -> Halves:
    """A small random model called `tiny`, which answers at once."""
    return halve(tiny_llama(folder / "tiny.gguf"), "tiny", folder / "cache")


def complete(swarm: LocalSwarm, prompt: str | list[int], **more: object) -> dict[str, Any]:
    """Returns: the whole answer to a greedy completion by `tiny`, its token ids included."""
    body = {
        "model": "tiny",
        "prompt": prompt,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    } | more
    answer = httpx.post(f"{swarm.api}/v1/completions", json=body, timeout=60, trust_env=False)
    assert answer.status_code == httpx.codes.OK, answer.text
    found: dict[str, Any] = answer.json()
    return found
