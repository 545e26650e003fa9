"""Weights travel: nodes that start empty fetch what they are to run from whoever has it. Real processes, asked through the HTTP API."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shardnet.bench.plain import PlainLlama
from shardnet.errors import ManifestError, ShardnetError
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.manifest_file import load_manifest
from shardnet.library.answers import Answer
from shardnet.local.processes import LocalSwarm
from shardnet.manifest import Manifest
from shardnet.swarm.addresses import read_coordinator_addresses
from shardnet.swarm.home import Home
from tests.support.asking import ask
from tests.support.free_ports import free_ports
from tests.support.random_models import N_VOCAB, tiny_llama

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

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"SHARDNET_HOME": str(self.swarm.home)}
        command = [sys.executable, "-m", "shardnet", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def check_answer(self) -> None:
        answer = self.complete()
        with PlainLlama(self.whole, n_ctx=256, threads=1) as plain:
            assert answer.token_ids == plain.generate(answer.prompt_token_ids, len(answer.token_ids)).tokens
        assert answer.token_ids


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    swarms = []

    def make(n_shards: int = 3, *, n_layers: int = 6, n_embd: int = 64, n_vocab: int = N_VOCAB) -> World:
        whole = tiny_llama(tmp_path / "tiny.gguf", n_layers=n_layers, n_embd=n_embd, n_vocab=n_vocab)
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


def test_the_order_in_which_processes_start_does_not_matter(make_world: Callable[..., World]) -> None:
    """Nodes first, the empty one before the full one, and the coordinator last; the nodes know nothing but a port to come."""
    world = make_world(2)
    (port,) = free_ports(1)
    world.start_node("node-1", "--shard", "1", "--coordinator", f"127.0.0.1:{port}")
    world.wait_for_fact("node-1", "shard_not_found_locally")
    world.give("node-0", [0, 1])
    world.start_node("node-0", "--shard", "0", "--coordinator", f"127.0.0.1:{port}")
    world.wait_for_fact("node-0", "node_not_joined")
    world.start_coordinator("--stages", "2", "--listen", f"127.0.0.1:{port}")
    world.swarm.wait_ready(60)
    world.check_answer()
    assert world.facts("node-1", "load_shard_torrent")


def test_a_node_finds_its_coordinator_by_the_dht_alone(make_world: Callable[..., World]) -> None:
    world = make_world(2)
    world.start_coordinator()
    addresses = read_coordinator_addresses(Home(world.swarm.home))
    assert addresses.dht is not None
    Home(world.swarm.home).coordinator.unlink()  # as on another machine
    world.give("node-0", [0, 1])
    world.start_node("node-0", "--bootstrap", str(addresses.dht))
    joined = world.wait_for_fact("node-0", "node_joined")
    assert joined["coordinator"] == str(addresses.nodes)


def test_a_damaged_file_is_put_aside_and_a_good_one_fetched(make_world: Callable[..., World]) -> None:
    world = make_world(2)
    world.start_coordinator("--stages", "2")
    world.give("node-0", [0, 1])
    folder = world.give("node-1", [1])
    path = folder / "shard-1.gguf"
    with path.open("r+b") as file:
        file.seek(-100, 2)
        byte = file.read(1)
        file.seek(-100, 2)
        file.write(bytes([byte[0] ^ 1]))
    for index in range(2):
        world.start_node(f"node-{index}", "--shard", str(index))
    world.swarm.wait_ready(60)
    world.check_answer()
    assert path.read_bytes() == (world.folder / "shard-1.gguf").read_bytes()
    assert (folder / "shard-1.gguf.corrupt").exists()
    assert world.facts("node-1", "shard_refused")


def test_a_shard_that_nobody_has_is_named(make_world: Callable[..., World]) -> None:
    world = make_world(2)
    world.start_coordinator("--stages", "2")
    world.give("node-0", [0])
    for index in range(2):
        world.start_node(f"node-{index}", "--shard", str(index))

    def reason() -> str:
        return "".join(str(model["reason"]) for model in world.swarm.get("/healthz")["models"])

    world.swarm.wait_for(lambda: "layers [3, 6) (shard 1) are on no connected node" in reason(), 30, "a clear reason")
    with pytest.raises(ShardnetError, match=r"layers \[3, 6\)"):
        world.complete()


def test_weights_come_from_one_who_only_seeds(make_world: Callable[..., World]) -> None:
    """`shardnet seed` is no node: the coordinator knows of it by the DHT only."""
    world = make_world(2)
    world.start_coordinator()
    world.swarm.start("seed", "seed", str(world.folder))
    world.wait_for_fact("seed", "dht_announced")
    world.start_node("node-0")
    world.swarm.wait_ready(60)
    world.check_answer()


def test_fetch_takes_a_model_into_a_folder_and_ends(make_world: Callable[..., World], tmp_path: Path) -> None:
    world = make_world(2)
    world.start_coordinator()
    world.give("node-0", [0, 1])
    world.start_node("node-0")
    world.swarm.wait_ready(60)
    done = world.run("fetch", MODEL, "--out", str(tmp_path / "taken"), "--json")
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["folder"])
    for file in world.folder.glob("*.gguf"):
        assert (folder / file.name).read_bytes() == file.read_bytes()
    assert load_manifest(folder).model_id == world.manifest.model_id
    assert not list(folder.glob("*.partial"))
    unknown = world.run("fetch", "nothing-like-it", "--out", str(tmp_path / "taken"))
    assert unknown.returncode == ManifestError.exit_code
    assert "nothing-like-it" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_copies_spread_to_idle_nodes_and_outlive_the_first_holder(make_world: Callable[..., World]) -> None:
    world = make_world(3)
    world.start_coordinator("--copies", "2")
    world.give("node-0", [0, 1, 2])
    world.start_node("node-0")
    world.swarm.wait_ready(60)
    world.start_node("node-1")

    def files(name: str) -> int:
        return len(list((world.root / name).glob("shards/*/shard-*.gguf")))

    world.swarm.wait_for(lambda: files("node-1") == 3, 60, "copies on node-1")
    world.swarm.processes.pop("node-0").kill()
    world.swarm.wait_for(lambda: world.swarm.get("/healthz")["nodes"] == 1, 20, "the loss to be seen")
    world.swarm.wait_ready(60)
    world.check_answer()


@pytest.mark.parametrize("second", [["--shard", "0", "--shard", "1"], []], ids=["replica", "copies"])
def test_the_first_complete_pipeline_serves_while_another_is_still_being_fetched(
    make_world: Callable[..., World], second: list[str]
) -> None:
    world = make_world(2, n_embd=512)
    world.start_coordinator("--copies", "2")
    world.give("node-0", [0, 1])
    slow = {"SHARDNET_TORRENT__UPLOAD_LIMIT_BYTES_PER_S": "700000"}
    world.start_node("node-0", "--shard", "0", "--shard", "1", env=slow)
    world.start_node("node-1", *second)

    def fetched() -> float:
        shares = [float(str(line["percent"])) for line in world.facts("node-1", "torrent_progress")]
        return max(shares, default=0.0)

    world.swarm.wait_for(lambda: fetched() > 1, 60, "the beginning of the second one's download")
    world.swarm.wait_ready(60)
    world.check_answer()
    assert fetched() < 100
    assert not list((world.root / "node-1").glob("shards/*/shard-*.gguf"))


def test_a_download_waits_for_its_only_seed_and_goes_on_when_it_is_back(make_world: Callable[..., World]) -> None:
    world = make_world(2, n_embd=512)
    world.start_coordinator("--stages", "2")
    world.give("node-0", [0, 1])
    slow = {"SHARDNET_TORRENT__UPLOAD_LIMIT_BYTES_PER_S": "3000000"}
    world.start_node("node-0", "--shard", "0", env=slow)
    world.start_node("node-1", "--shard", "1")

    def fetched() -> float:
        shares = [float(str(line["percent"])) for line in world.facts("node-1", "torrent_progress")]
        return max(shares, default=0.0)

    world.swarm.wait_for(lambda: fetched() > 10, 40, "the beginning of a download")
    world.swarm.processes.pop("node-0").kill()
    stalled = world.wait_for_fact("node-1", "torrent_stalled")
    assert "it goes on when" in str(stalled["reason"])
    before = fetched()
    assert before < 95
    world.start_node("node-0", "--shard", "0")
    world.swarm.wait_ready(90)
    world.check_answer()
    shares = [float(str(line["percent"])) for line in world.facts("node-1", "torrent_progress")]
    assert min(shares[shares.index(before) :]) >= before - 1, "pieces were kept"


def test_a_disk_budget_makes_room_by_deleting_what_others_have_and_never_the_last_copy(
    make_world: Callable[..., World],
) -> None:
    world = make_world(2)
    budget = max(shard.bytes for shard in world.manifest.content.shards) * 5 // 4
    world.start_coordinator("--stages", "2")
    world.swarm.start("seed", "seed", str(world.folder))
    world.wait_for_fact("seed", "dht_announced")
    world.give("node-0", [0])
    world.give("node-1", [0])
    small = {"SHARDNET_TORRENT__DISK_BUDGET_BYTES": str(budget)}
    world.start_node("node-1", "--shard", "1", env=small)
    world.start_node("node-0", "--shard", "0")
    world.swarm.wait_ready(60)
    world.check_answer()
    files = sorted(path.name for path in (world.root / "node-1").glob("shards/*/shard-*.gguf"))
    assert files == ["shard-1.gguf"]
    assert world.facts("node-1", "shard_evicted")
