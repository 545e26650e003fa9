"""`shardnet plan` measures this machine with the model's own shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from tests.support.random_models import tiny_llama

pytestmark = pytest.mark.integration


def test_a_machine_as_quick_as_this_one_is_measured_not_guessed(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "tiny.gguf", n_layers=4, n_vocab=1024, n_ctx=2048)
    folder, _ = split_model(plan_split(model, CutRequest(n_shards=3)), tmp_path / "cache")
    nodes = [part for name in ("a", "b") for part in ("--node", f"{name}:1GiB:measured")]
    command = [
        sys.executable,
        "-m",
        "shardnet",
        "plan",
        str(folder),
        *nodes,
        "--threads",
        "1",
        "--ctx",
        "256",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {layout["kind"] for layout in found["layouts"]} == {"one node", "split", "replicas"}
    assert all(layout["seconds_per_token"] > 0 for layout in found["layouts"])
    assert not any("measured yet" in note for note in found["notes"])
    assert any("splitting is slower" in note for note in found["notes"])
