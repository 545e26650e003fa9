"""A process that may have less memory than the machine says so, refuses what does not fit, and names the kernel's kill for what it is."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shardnet.errors import NoRoomError
from shardnet.inference.engine import child, spawning
from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.settings import InferenceSettings
from tests.support import dying_process, hungry_engine
from tests.support.random_models import tiny_llama
from tests.support.small_groups import memory_group, run_in

LIMIT = 300_000_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", tied=False)


def test_a_group_s_limit_is_told_a_load_beyond_it_refused_and_a_kill_named(tiny: Path) -> None:
    with memory_group(LIMIT) as group:
        devices = run_in(group, ["-m", "shardnet", "devices", "--json"])
        assert devices.returncode == 0, devices.stderr
        engine = run_in(group, [hungry_engine.__file__, str(tiny)])
        assert engine.returncode == 0, engine.stderr
        path = f"/{group.parent.name}"
    cpu = json.loads(devices.stdout)["devices"][0]
    assert cpu["total_bytes"] <= LIMIT
    assert cpu["free_bytes"] <= LIMIT
    assert cpu["limit"].startswith("300.0 MB by memory.")
    assert path in cpu["limit"]
    told = json.loads(engine.stdout.splitlines()[-1])  # its log comes first
    assert path in told["refused"]
    assert told["facts"]["needed_bytes"] > told["facts"]["free_bytes"]
    assert "killed by the kernel for want of memory" in told["died"]
    assert "300.0 MB by memory." in told["died"]
    assert told["out_of_memory"] is True


def test_a_limit_of_the_address_space_is_told() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

    run = subprocess.run(
        [sys.executable, "-m", "shardnet", "devices"],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "3.2 GB by RLIMIT_AS (ulimit -v)" in run.stdout


async def test_a_load_that_the_kernel_killed_for_want_of_memory_is_not_tried_again(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter(range(100))
    monkeypatch.setattr(spawning, "memory_kills", lambda: next(kills))
    monkeypatch.setattr(child, "memory_kills", lambda: next(kills))
    monkeypatch.setattr(spawning, "COMMAND", dying_process.command("shardnet.inference.worker.process"))
    dying_process.mortal(tiny, signal.SIGKILL)
    engine = EngineProcess(InferenceSettings(threads=1))
    first = (await engine.start()).pid
    try:
        with pytest.raises(NoRoomError, match="killed by the kernel for want of memory") as refused:
            await engine.load(hungry_engine.load_of(str(tiny), 64))
        assert refused.value.facts["needed_bytes"]
        assert engine.pid != first
    finally:
        await engine.close()
