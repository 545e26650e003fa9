"""Engines that share a machine share its cores, and a dead one is not counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shardnet.inference.llama.census import EngineCensus, share_of_cores


@pytest.mark.parametrize(("cores", "engines", "threads"), [(8, 1, 8), (8, 3, 2), (2, 3, 1), (1, 1, 1), (4, 0, 4)])
def test_each_engine_gets_its_share_and_never_none(cores: int, engines: int, threads: int) -> None:
    assert share_of_cores(cores, engines) == threads


HOLD = """
import sys
from pathlib import Path
from shardnet.inference.llama.census import EngineCensus
census = EngineCensus(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""


def test_engines_of_other_processes_are_counted_while_they_live(tmp_path: Path) -> None:
    census = EngineCensus(tmp_path)
    assert census.count() == 1
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        assert census.count() == 2
        other.kill()
        other.wait()
        assert census.count() == 1
    assert len(list(tmp_path.glob("*.lock"))) == 1, "the dead engine's file is gone"
    census.close()
    assert list(tmp_path.iterdir()) == []
