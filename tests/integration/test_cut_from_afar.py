"""Two machines each cut their own layers straight from a web server and serve the model together; what is not proved says so. Real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardnet.bench.plain import PlainLlama
from shardnet.errors import ShardnetError
from shardnet.inference.splitting.manifest_file import load_manifest
from shardnet.local.processes import LocalSwarm
from shardnet.manifest import NoProof
from tests.support.asking import ask
from tests.support.random_models import tiny_llama
from tests.support.range_server import range_server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(150)]


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[LocalSwarm]:
    swarm = LocalSwarm(tmp_path / "swarm", log_format="json")
    yield swarm
    swarm.stop()


def shardnet(*arguments: str, home: Path) -> str:
    environment = os.environ | {"SHARDNET_HOME": str(home)}
    command = [sys.executable, "-m", "shardnet", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cut(url: str, cache: Path, only: str, *, home: Path) -> dict[str, Any]:
    told = shardnet("split", url, "--shards", "2", "--out", str(cache), "--json", "--only", only, home=home)
    result: dict[str, Any] = json.loads(told)
    return result


def start_node(swarm: LocalSwarm, cache: Path, shard: int) -> None:
    name = f"node-{shard}"
    swarm.start(
        name,
        "node",
        *("--name", name, "--listen", "127.0.0.1:0", "--models-cache", str(cache), "--threads", "1"),
        *("--shard", str(shard)),
    )


def test_each_machine_serves_the_shard_that_it_cut(
    swarm: LocalSwarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_llama(tmp_path / "tiny.gguf", n_layers=6)
    caches = [tmp_path / "owner", tmp_path / "other"]
    shardnet("swarm", "init", home=swarm.home)
    with range_server({"/tiny.gguf": whole}) as (url, _):
        made = [
            cut(f"{url}/tiny.gguf", caches[0], "0", home=swarm.home),
            cut(f"{url}/tiny.gguf", caches[1], "1", home=tmp_path / "stranger"),
        ]
    assert made[0]["model_id"] == made[1]["model_id"]
    assert made[0]["signature"], "signed where the owner's key is"
    assert made[1]["signature"] is None
    assert all(one["certificate"]["proof"] == "none" for one in made)
    assert all(isinstance(load_manifest(Path(one["folder"])).certificate, NoProof) for one in made)
    swarm.start_coordinator("--models-cache", str(caches[0]), "--stages", "2")
    for shard, cache in enumerate(caches):
        start_node(swarm, cache, shard)
    swarm.wait_ready(60)
    body = {"model": "tiny", "prompt": "hello there", "max_tokens": 8, "temperature": 0}
    answer = ask(swarm.api, "/v1/completions", body)
    with PlainLlama(whole, n_ctx=256, threads=1) as plain:
        assert answer.token_ids == plain.generate(answer.prompt_token_ids, len(answer.token_ids)).tokens
    (card,) = swarm.get("/v1/models")["data"]
    assert card["shardnet"]["proved"] is False
    assert "cut from an address" in card["shardnet"]["unproved_reason"]
    (model,) = swarm.get("/status")["models"]
    assert model["proved"] is False

    swarm.stop()
    monkeypatch.setenv("SHARDNET_MODELS__REQUIRE_PROOF", "true")
    swarm.start_coordinator("--models-cache", str(caches[0]))
    start_node(swarm, caches[0], 0)
    swarm.wait_for(lambda: bool(swarm.get("/status")["nodes"]), 60, "the node")
    assert swarm.get("/v1/models")["data"] == []
    (kept_out,) = swarm.get("/status")["kept_out"]
    assert "models.require_proof: it was cut from an address" in kept_out["reason"]
    with pytest.raises(ShardnetError, match=r"kept out by the coordinator's models\.require_proof"):
        ask(swarm.api, "/v1/completions", body)
