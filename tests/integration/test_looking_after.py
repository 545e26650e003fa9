"""`shardnet doctor`, `logs` and `status` on a real swarm, and a fault made by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from shardnet.children import python_module
from shardnet.local.processes import LocalSwarm
from tests.support.two_nodes import tiny_halves

pytestmark = pytest.mark.integration


def troubles(swarm: LocalSwarm) -> list[str]:
    """Returns: what is wrong with files of shards that nodes have in memory."""
    return [one["file_trouble"] for node in swarm.get("/status")["nodes"] for one in node["held"]]


def test_doctor_logs_and_status_tell_of_a_real_swarm_and_of_a_file_that_is_gone(tmp_path: Path) -> None:
    halves = tiny_halves(tmp_path)
    with LocalSwarm(tmp_path) as swarm:

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            environment = os.environ | {"SHARDNET_HOME": str(swarm.home)}
            command = [*python_module("shardnet"), *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)

        halves.serve(swarm)
        logged = [json.loads(line) for line in run("logs", "--json").stdout.splitlines()]
        assert {one["node"] for one in logged} == {"coordinator", "node-0", "node-1"}
        assert any("SHARD 0 LOADED BEFORE JOINING NETWORK" in one["text"] for one in logged)

        (swarm.folder / "node-1" / "shards" / halves.folder.name / "shard-1.gguf").unlink()
        swarm.wait_for(lambda: any(troubles(swarm)), 20, "the file's absence in /status")
        assert "shard 1 of tiny: its file is gone" in run("status").stdout

        looked = run("doctor", "--json", "--models-cache", str(halves.cache))
        assert looked.returncode == 0, looked.stdout
        found = {(one["check"], one["level"]): one["what"] for one in json.loads(looked.stdout)["findings"]}
        assert ("models", "ok") in found
        assert found["versions", "ok"] == "the same software on 2 nodes"
        assert found["nodes", "warning"].startswith("node-1: shard 1 of tiny: its file is gone")

        command = [*python_module("shardnet"), "logs", "--follow", "--lines", "1"]
        environment = os.environ | {"SHARDNET_HOME": str(swarm.home)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as following:
            assert following.stdout is not None
            assert following.stderr is not None
            assert following.stdout.readline()
            following.send_signal(signal.SIGINT)
            assert (following.wait(20), following.stderr.read()) == (0, b"")
