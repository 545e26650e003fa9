"""Memory, processors, open files and the temporary folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from shardnet.doctor import machine
from shardnet.doctor.machine import file_findings, memory_findings, temp_findings, thread_findings
from shardnet.limits.memory import Bound, Room
from shardnet.limits.processors import Processors
from shardnet.node.settings import NodeSettings

GB = 10**9


def test_hardly_any_memory_is_a_fault_that_names_the_limit() -> None:
    bound = Bound(300_000_000, 100_000_000, "memory.max of cgroup /x")
    (found,) = memory_findings(Room(300_000_000, 100_000_000, bound), machine_bytes=16 * GB)
    assert found.level == "fault"
    assert "300.0 MB by memory.max of cgroup /x" in found.what
    assert found.remedy == "Raise memory.max of cgroup /x"


def test_a_small_share_of_a_large_machine_swap_and_a_wish_beyond_it_are_told() -> None:
    small = Room(4 * GB, 3 * GB, Bound(4 * GB, 3 * GB, "memory.max of cgroup /x"))
    assert memory_findings(small, machine_bytes=16 * GB)[0].level == "note"
    assert memory_findings(Room(16 * GB, 8 * GB), machine_bytes=16 * GB)[0].level == "ok"
    assert "in swap" in memory_findings(Room(16 * GB, 8 * GB), machine_bytes=16 * GB, swap_used_bytes=3 * GB)[0].what
    assert memory_findings(Room(16 * GB, 8 * GB), machine_bytes=16 * GB, wanted_bytes=20 * GB)[0].level == "warning"


def test_more_threads_than_can_run_and_a_busy_machine_are_warnings() -> None:
    quota = Processors(1, "quota of 1.5 processors by cpu.max of cgroup /x")
    assert thread_findings(quota, wanted=0, load=0.1, logical=8)[0].level == "note"
    assert "Set it to 1" in thread_findings(quota, wanted=4, load=0.1, logical=8)[0].remedy
    assert thread_findings(Processors(4), wanted=0, load=9, logical=4)[0].level == "warning"
    assert thread_findings(Processors(4), wanted=4, load=1, logical=4)[0].level == "ok"


def test_open_files_are_held_against_what_transfers_may_want() -> None:
    assert file_findings(1024, 4096, connections=200)[0].level == "ok"
    assert file_findings(-1, -1, connections=200)[0].what == "no limit"
    raised = file_findings(256, 4096, connections=200)[0]
    assert (raised.level, raised.remedy) == ("warning", "Run `ulimit -n 328`, or set LimitNOFILE=328 in the unit")
    assert "root" in file_findings(64, 64, connections=200)[0].remedy
    assert file_findings(64, 64, connections=200)[0].level == "fault"


def test_no_temporary_folder_is_the_fault_that_shardnet_itself_would_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert temp_findings(machine.look_at_temp())[0].level == "ok"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not-there"))
    (found,) = temp_findings(machine.look_at_temp())
    assert found.level == "fault"
    assert "set TMPDIR" in found.what


def test_what_is_gathered_here_can_be_decided_about() -> None:
    settings = NodeSettings()
    for look in (machine.look_at_memory, machine.look_at_threads, machine.look_at_files):
        assert look(settings)
