"""How many processors a process can keep busy, on described machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardnet.limits.processors import Processors, usable_processors
from tests.support.described_machines import DescribedMachine


@pytest.fixture
def machine(tmp_path: Path) -> DescribedMachine:
    return DescribedMachine(tmp_path)


def test_without_limits_every_core_is_used(machine: DescribedMachine, tmp_path: Path) -> None:
    assert usable_processors(4, machine.root) == Processors(4)
    assert usable_processors(4, tmp_path / "no such machine") == Processors(4)


def test_a_quota_of_one_core_is_one_thread(machine: DescribedMachine) -> None:
    machine.mount_2("/sys/fs/cgroup", own="/one")
    machine.write("/sys/fs/cgroup/one/cpu.max", "100000 100000\n")
    assert usable_processors(4, machine.root) == Processors(1, "quota of 1 processors by cpu.max of cgroup /one")


def test_a_quota_above_the_own_group_counts(machine: DescribedMachine) -> None:
    machine.mount_1("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct", own="/jobs/one")
    for path, quota in (("", -1), ("/jobs", 200_000), ("/jobs/one", 300_000)):
        machine.write(f"/sys/fs/cgroup/cpu,cpuacct{path}/cpu.cfs_quota_us", f"{quota}\n")
        machine.write(f"/sys/fs/cgroup/cpu,cpuacct{path}/cpu.cfs_period_us", "100000\n")
    assert usable_processors(8, machine.root) == Processors(
        2, "quota of 2 processors by cpu.cfs_quota_us of cgroup /jobs"
    )


@pytest.mark.parametrize(
    ("quota", "threads"), [(1_000, 1), (100_000, 1), (150_000, 1), (299_000, 2), (400_000, 4), (900_000, 4)]
)
def test_only_whole_processors_of_a_quota_count(machine: DescribedMachine, quota: int, threads: int) -> None:
    machine.mount_2("/sys/fs/cgroup", own="/")
    machine.write("/sys/fs/cgroup/cpu.max", f"{quota} 100000\n")
    assert usable_processors(4, machine.root).threads == threads


@pytest.mark.parametrize("text", ["max 100000", "100000 0", "", "many 100000", "100000"])
def test_a_quota_that_is_none_bounds_nothing(machine: DescribedMachine, text: str) -> None:
    machine.mount_2("/sys/fs/cgroup", own="/")
    machine.write("/sys/fs/cgroup/cpu.max", text)
    assert usable_processors(4, machine.root) == Processors(4)


def test_affinity_and_cpusets_are_one_list(machine: DescribedMachine) -> None:
    machine.replace("proc/self/status", "0-7", "0,4-5")
    assert usable_processors(8, machine.root) == Processors(3, "affinity or cpuset of 3 processors")
    machine.replace("proc/self/status", "0,4-5", "6")
    assert usable_processors(8, machine.root) == Processors(1, "affinity or cpuset of 1 processor")
    machine.replace("proc/self/status", "\t6", "\tall of them")
    assert usable_processors(8, machine.root) == Processors(8)


def test_the_tightest_of_several_limits_is_named(machine: DescribedMachine) -> None:
    machine.replace("proc/self/status", "0-7", "0-2")
    machine.mount_2("/sys/fs/cgroup", own="/one")
    machine.write("/sys/fs/cgroup/one/cpu.max", "250000 100000\n")
    assert usable_processors(8, machine.root) == Processors(2, "quota of 2.5 processors by cpu.max of cgroup /one")
