"""Figures of a real coordinator and two real nodes, which are scraped as Prometheus does it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from shardnet.local.processes import LocalSwarm
from tests.support.exposition import Samples, check_metrics, samples, value
from tests.support.free_ports import free_ports
from tests.support.two_nodes import complete, tiny_halves

pytestmark = pytest.mark.integration


def scraped(url: str) -> tuple[str, Samples]:
    told = httpx.get(f"{url}/metrics", timeout=10, trust_env=False)
    assert told.status_code == httpx.codes.OK
    return told.text, samples(told.text)


def test_daemons_tell_the_work_that_a_client_gave_them(tmp_path: Path) -> None:
    halves = tiny_halves(tmp_path)
    ports = free_ports(2)
    with LocalSwarm(tmp_path / "swarm") as swarm:
        halves.start_coordinator(swarm)
        for index, port in enumerate(ports):
            halves.start_node(swarm, index, "--metrics-listen", f"127.0.0.1:{port}")
        swarm.wait_ready(60)
        urls = [swarm.api, *(f"http://127.0.0.1:{port}" for port in ports)]
        told = complete(swarm, list(range(20, 40)), max_tokens=16)
        text, coordinator = scraped(swarm.api)
        assert value(coordinator, "shardnet_generation_tokens_total") == told["usage"]["completion_tokens"] == 16
        assert value(coordinator, "shardnet_prompt_tokens_total") == 20
        assert value(coordinator, "shardnet_inter_token_latency_seconds_count") == 15
        for stage, node in (("0", "node-0"), ("1", "node-1")):
            labels = {"model": "tiny", "stage": stage, "node": node}
            assert value(coordinator, "shardnet_stage_compute_seconds_sum", labels) > 0
            assert value(coordinator, "shardnet_stage_batch_rows_count", labels) >= 16
        for url, name in zip(urls, ("coordinator", "node-0", "node-1"), strict=True):
            text, found = scraped(url)
            check_metrics(text)
            assert value(found, "shardnet_build_info") == 1
            assert value(found, "process_cpu_seconds_total") > 0
            assert value(found, "shardnet_threads") > 1
            if name == "coordinator":
                continue
            assert value(found, "shardnet_joined") == value(found, "shardnet_engine_up") == 1
            assert value(found, "shardnet_shards", {"state": "in_memory"}) == 1
            assert value(found, "shardnet_shards_memory_bytes") > value(found, "shardnet_kv_cache_bytes") > 0
            assert value(found, "shardnet_engine_process_resident_memory_bytes") > 1e6
            assert value(found, "shardnet_torrents", {"state": "fetching"}) == 0
            assert value(found, "shardnet_dht_datagrams_total", {"direction": "in"}) > 0
        (swarm.folder / "node-0" / "shards" / halves.folder.name / "shard-0.gguf").unlink()
        swarm.wait_for(lambda: "its file is gone" in str(swarm.get("/status")), 30, "the node to see it")
        _, found = scraped(urls[1])
        assert value(found, "shardnet_shards", {"state": "in_memory"}) == 1


def test_a_nodes_port_for_metrics_that_is_taken_ends_it_with_one_sentence(tmp_path: Path) -> None:
    with LocalSwarm(tmp_path / "swarm") as swarm:
        swarm.start_coordinator("--models-cache", str(tmp_path / "cache"))
        taken = swarm.api.removeprefix("http://")
        node = swarm.start_node("node-0", tmp_path / "empty", "--metrics-listen", taken)
        assert node.wait(20) == 2
        assert any("metrics.listen" in line and "in use" in line for line in node.tail)
        assert not any("Traceback" in line for line in node.tail)
