"""`shardnet bench` on a small random model: every row has a measured figure, plain llama.cpp's, and a prediction."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.random_models import tiny_llama

pytestmark = pytest.mark.integration


def run_bench(model: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "shardnet", "bench", "--model", str(model), "--rounds", "1", *arguments]
    # It waits for what nodes tell after a measurement.
    environment = os.environ | {"SHARDNET_NODE__HEARTBEAT_INTERVAL_S": "0.2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny.gguf", n_layers=4, n_vocab=1024)


def test_a_slow_network_costs_its_round_trip_and_the_planner_says_so(model: Path) -> None:
    rows = run_bench(model, "--stages", "1,2", "--net", "loopback,20ms", "--tokens", "12", "--threads", "1")
    assert [(row["net"], row["stages"]) for row in rows] == [
        ("loopback", 1),
        ("loopback", 2),
        ("20ms", 1),
        ("20ms", 2),
    ]
    near, far = rows[1], rows[3]
    assert far["ms_per_token"] >= 20, "a ring of two hops is one round trip"
    assert near["ms_per_token"] < far["ms_per_token"]
    assert rows[2]["ms_per_token"] < 20, "one node goes on by itself"
    assert far["predicted_ms_per_token"] >= 20
    assert {row["parity"] for row in rows} == {"identical"}


def test_streams_at_once_are_held_against_plain_batches(model: Path) -> None:
    pin = ["--pin"] if sys.platform == "linux" else []
    (row,) = run_bench(model, "--stages", "2", "--streams", "3", "--tokens", "24", *pin)
    assert (row["bench"], row["streams"], row["plain_threads"]) == ("streams", 3, 2)
    assert row["tokens_per_s"] > 0
    assert row["predicted_tokens_per_s"] > 0
    assert row["batch_rows"] >= 1


def test_a_long_prompt_goes_in_chunks(model: Path) -> None:
    (row,) = run_bench(model, "--stages", "2", "--prefill", "100", "--chunk", "32")
    assert (row["bench"], row["prompt_tokens"], row["chunk"]) == ("prefill", 100, 32)
    assert row["first_token_s"] > 0
    assert row["parity"] == "identical"
