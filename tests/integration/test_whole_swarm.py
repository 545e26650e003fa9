"""Weights travel: nodes that start empty fetch what they are to run from whoever has it. Real processes, asked through the HTTP API."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shardnet.bench.plain import PlainLlama
from shardnet.demo.client import Answer, ask
from shardnet.demo.processes import LocalSwarm
from shardnet.inference.split import CutRequest, plan_split, split_model
from shardnet.manifest import Manifest
from tests.random_models import tiny_llama

pytestmark = [pytest.mark.integration, pytest.mark.timeout(150)]

MODEL = "tiny"
QUICK = {"SHARDNET_TORRENT__STALL_TIMEOUT_S": "1", "SHARDNET_TORRENT__RECONNECT_INTERVAL_S": "0.5"}


@dataclass
class World:
    """A split model and a swarm to run it in."""

    whole: Path
    folder: Path
    manifest: Manifest
    root: Path
    swarm: LocalSwarm

    def start_coordinator(self, *arguments: str) -> None:
        """The coordinator knows the model by its manifest and tokenizer; it has no shard."""
        self.give("coordinator", [])
        self.swarm.start_coordinator("--models-cache", str(self.root / "coordinator"), *arguments)

    def give(self, name: str, shards: list[int], *, manifest: bool = True) -> Path:
        """Put shards into a models cache. Returns: the folder that they lie in."""
        target = self.root / name / "shards" / self.folder.name
        target.mkdir(parents=True, exist_ok=True)
        names = ["manifest.json", "tokenizer.gguf"] if manifest else []
        for file in [*names, *(f"shard-{shard}.gguf" for shard in shards)]:
            shutil.copy(self.folder / file, target / file)
        return target

    def start_node(self, name: str, *arguments: str, env: dict[str, str] | None = None) -> None:
        cache = self.root / name
        cache.mkdir(exist_ok=True)
        self.swarm.start(
            name,
            "node",
            *("--name", name, "--listen", "127.0.0.1:0", "--models-cache", str(cache), "--threads", "1"),
            *arguments,
            env=QUICK | (env or {}),
        )

    def lines(self, name: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in list(self.swarm.processes[name].tail) if line.startswith("{")]

    def facts(self, name: str, fact: str) -> list[dict[str, object]]:
        return [line for line in self.lines(name) if line.get("event") == fact]

    def wait_for_fact(self, name: str, fact: str, timeout_s: float = 30) -> dict[str, object]:
        self.swarm.wait_for(lambda: bool(self.facts(name, fact)), timeout_s, f"{fact} of {name}")
        return self.facts(name, fact)[0]

    def complete(self) -> Answer:
        body = {"model": MODEL, "prompt": "hello there", "max_tokens": 8, "temperature": 0}
        return ask(self.swarm.api, "/v1/completions", body)

    def check_answer(self) -> None:
        answer = self.complete()
        with PlainLlama(self.whole, n_ctx=256) as plain:
            assert answer.token_ids == plain.generate(answer.prompt_token_ids, len(answer.token_ids)).tokens
        assert answer.token_ids


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    swarms = []

    def make(n_shards: int = 3, **model: int) -> World:
        whole = tiny_llama(tmp_path / "tiny.gguf", **({"n_layers": 6} | model))
        folder, manifest = split_model(plan_split(whole, CutRequest(n_shards=n_shards), MODEL), tmp_path / "split")
        swarm = LocalSwarm(tmp_path / "swarm", log_format="json")
        swarms.append(swarm)
        return World(whole, folder, manifest, tmp_path, swarm)

    yield make
    for swarm in swarms:
        swarm.stop()


def test_two_empty_nodes_fetch_their_shards_from_the_one_that_has_them(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.start_coordinator("--stages", "3")
    world.give("node-0", [0, 1, 2])
    for index in range(3):
        world.start_node(f"node-{index}", "--shard", str(index))
    world.swarm.wait_ready(60)
    world.check_answer()
    for index in (1, 2):
        folder = world.root / f"node-{index}" / "shards" / world.folder.name
        fetched = (folder / f"shard-{index}.gguf").read_bytes()
        assert fetched == (world.folder / f"shard-{index}.gguf").read_bytes()
        world.wait_for_fact(f"node-{index}", "dht_announced")
        assert world.facts(f"node-{index}", "load_shard_torrent")
    held = {shard["shard_id"] for node in world.swarm.get("/status")["nodes"] for shard in node["held"]}
    assert held == {0, 1, 2}
