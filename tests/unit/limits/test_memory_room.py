"""The limits of a process's memory, on described machines: control groups of both versions, containers, resource limits."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from shardnet.errors import NoRoomError, SettingsError
from shardnet.limits.killing import memory_kills
from shardnet.limits.memory import Room, memory_bounds, memory_room, refuse_to_map, room_here
from tests.support.described_machines import NO_LIMIT_1, DescribedMachine

MB = 10**6
TOTAL, FREE = 16_000 * MB, 9_000 * MB


@pytest.fixture
def machine(tmp_path: Path) -> DescribedMachine:
    return DescribedMachine(tmp_path)


def room(machine: DescribedMachine) -> Room:
    return memory_room(TOTAL, FREE, machine.root)


def source(machine: DescribedMachine) -> str:
    found = room(machine)
    return "" if found.bound is None else found.bound.source


def test_a_process_without_limits_has_what_the_machine_has(machine: DescribedMachine) -> None:
    assert room(machine) == Room(TOTAL, FREE)


def test_the_own_group_s_limit_counts_not_only_the_root_s(machine: DescribedMachine) -> None:
    machine.mount_2("/sys/fs/cgroup", own="/jobs/one")
    machine.memory_2("/sys/fs/cgroup/jobs", "max", 900 * MB)
    machine.memory_2("/sys/fs/cgroup/jobs/one", 300 * MB, 250 * MB, 150 * MB)
    found = room(machine)
    assert (found.total_bytes, found.free_bytes) == (300 * MB, 200 * MB)
    assert str(found.bound) == "300.0 MB by memory.max of cgroup /jobs/one"


def test_a_parent_with_less_left_is_the_limit(machine: DescribedMachine) -> None:
    machine.mount_2("/sys/fs/cgroup", own="/system.slice/shardnet.service")
    machine.memory_2("/sys/fs/cgroup/system.slice", 500 * MB, 450 * MB)
    machine.memory_2("/sys/fs/cgroup/system.slice/shardnet.service", 300 * MB, 100 * MB)
    found = room(machine)
    assert (found.total_bytes, found.free_bytes) == (300 * MB, 50 * MB)
    assert source(machine) == "memory.max of cgroup /system.slice"


def test_memory_high_counts_since_a_process_above_it_hardly_moves(machine: DescribedMachine) -> None:
    machine.mount_2("/sys/fs/cgroup", own="/one")
    machine.memory_2("/sys/fs/cgroup/one", 300 * MB, 100 * MB)
    machine.write("/sys/fs/cgroup/one/memory.high", f"{200 * MB}\n")
    assert (room(machine).total_bytes, room(machine).free_bytes) == (200 * MB, 100 * MB)
    assert source(machine) == "memory.high of cgroup /one"


def test_a_limit_of_version_1_counts_from_the_own_group_up(machine: DescribedMachine) -> None:
    machine.mount_1("memory", "/sys/fs/cgroup/memory", own="/jobs/one")
    machine.memory_1("/sys/fs/cgroup/memory", NO_LIMIT_1, 4000 * MB)
    machine.memory_1("/sys/fs/cgroup/memory/jobs", 300 * MB, 100 * MB, 40 * MB)
    machine.memory_1("/sys/fs/cgroup/memory/jobs/one", NO_LIMIT_1, 80 * MB)
    assert (room(machine).total_bytes, room(machine).free_bytes) == (300 * MB, 240 * MB)
    assert source(machine) == "memory.limit_in_bytes of cgroup /jobs"


def test_a_parent_without_hierarchy_limits_nobody_but_itself(machine: DescribedMachine) -> None:
    machine.mount_1("memory", "/sys/fs/cgroup/memory", own="/jobs/one")
    machine.memory_1("/sys/fs/cgroup/memory", NO_LIMIT_1)
    machine.memory_1("/sys/fs/cgroup/memory/jobs", 300 * MB)
    machine.memory_1("/sys/fs/cgroup/memory/jobs/one", NO_LIMIT_1)
    machine.write("/sys/fs/cgroup/memory/jobs/one/memory.use_hierarchy", "1\n")
    assert room(machine).total_bytes == 300 * MB
    machine.write("/sys/fs/cgroup/memory/jobs/one/memory.use_hierarchy", "0\n")
    assert room(machine) == Room(TOTAL, FREE)


def test_swap_that_shares_a_limit_with_memory_uses_it_up(machine: DescribedMachine) -> None:
    machine.mount_1("memory", "/sys/fs/cgroup/memory", own="/one")
    machine.memory_1("/sys/fs/cgroup/memory/one", 300 * MB, 100 * MB)
    machine.write("/sys/fs/cgroup/memory/one/memory.memsw.limit_in_bytes", f"{400 * MB}\n")
    machine.write("/sys/fs/cgroup/memory/one/memory.memsw.usage_in_bytes", f"{350 * MB}\n")
    assert room(machine).free_bytes == 50 * MB
    assert source(machine) == "memory.memsw.limit_in_bytes of cgroup /one"


def test_both_versions_beside_each_other_are_read_where_each_controller_is(machine: DescribedMachine) -> None:
    machine.mount_1("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct", own="/elsewhere")
    machine.mount_1("memory", "/sys/fs/cgroup/memory", own="/one")
    machine.mount_2("/sys/fs/cgroup/unified", own="/user.slice")
    machine.memory_1("/sys/fs/cgroup/memory/one", 300 * MB)
    machine.write("/sys/fs/cgroup/unified/user.slice/cgroup.procs", "")
    assert [bound.source for bound in memory_bounds(machine.root)] == ["memory.limit_in_bytes of cgroup /one"]


def test_a_container_sees_its_own_group_as_the_root(machine: DescribedMachine) -> None:
    machine.mount_2("/sys/fs/cgroup", own="/")
    machine.memory_2("/sys/fs/cgroup", 300 * MB, 100 * MB)
    assert room(machine).free_bytes == 200 * MB
    assert source(machine) == "memory.max of cgroup /"


def test_a_container_that_is_shown_one_group_of_the_host_s_names_reads_that(machine: DescribedMachine) -> None:
    machine.mount_1("memory", "/sys/fs/cgroup/memory", shows="/docker/0123", own="/docker/0123/inner")
    machine.memory_1("/sys/fs/cgroup/memory", 300 * MB, 100 * MB)
    machine.memory_1("/sys/fs/cgroup/memory/inner", NO_LIMIT_1)
    assert room(machine).free_bytes == 200 * MB
    assert source(machine) == "memory.limit_in_bytes of cgroup /docker/0123"


@pytest.mark.parametrize("own", ["/../..", "/../../pod/other", "/.."])
def test_a_path_outside_of_the_namespace_falls_back_to_what_is_mounted(machine: DescribedMachine, own: str) -> None:
    machine.mount_2("/sys/fs/cgroup", own=own)
    machine.memory_2("/sys/fs/cgroup", 300 * MB, 100 * MB)
    assert room(machine).free_bytes == 200 * MB
    assert source(machine) == "memory.max of cgroup /"


def test_a_path_outside_of_the_namespace_is_followed_by_its_last_names_where_they_are_mounted(
    machine: DescribedMachine,
) -> None:
    machine.mount_2("/sys/fs/cgroup", own="/../../pod/one")
    machine.memory_2("/sys/fs/cgroup", "max")
    machine.memory_2("/sys/fs/cgroup/one", 300 * MB)
    assert source(machine) == "memory.max of cgroup /one"


def test_a_mount_of_a_group_above_the_namespace_is_read_as_far_as_it_can_be(machine: DescribedMachine) -> None:
    machine.mount_2("/sys/fs/cgroup", shows="/../..", own="/")
    machine.memory_2("/sys/fs/cgroup", 300 * MB)
    assert source(machine) == "memory.max of cgroup /"


def test_a_mount_point_with_a_space_is_found(machine: DescribedMachine) -> None:
    machine.mount_1("memory", "/sys/fs/c group", own="/one")
    machine.memory_1("/sys/fs/c group/one", 300 * MB)
    assert room(machine).total_bytes == 300 * MB


def test_groups_that_are_not_mounted_limit_nothing_that_could_be_told(machine: DescribedMachine) -> None:
    machine.write("/proc/self/cgroup", "0::/one\n4:memory:/one\n")
    assert room(machine) == Room(TOTAL, FREE)


def test_a_system_without_such_files_has_no_such_limits(tmp_path: Path) -> None:
    assert memory_room(TOTAL, FREE, tmp_path) == Room(TOTAL, FREE)


def test_files_that_cannot_be_read_or_make_no_sense_are_no_limit(machine: DescribedMachine) -> None:
    machine.mount_2("/sys/fs/cgroup", own="/one")
    (machine.root / "sys/fs/cgroup/one/memory.max").mkdir(parents=True)  # reading it fails, whoever reads
    machine.write("/sys/fs/cgroup/one/memory.high", "plenty\n")
    machine.write("/sys/fs/cgroup/one/memory.stat", "inactive_file\nactive_file many\n")
    machine.write("/proc/self/limits", "Max address space\nMax data size soft\n")
    assert room(machine) == Room(TOTAL, FREE)


def test_a_limit_above_the_machine_is_none(machine: DescribedMachine) -> None:
    machine.mount_2("/sys/fs/cgroup", own="/one")
    machine.memory_2("/sys/fs/cgroup/one", 2 * TOTAL)
    assert room(machine) == Room(TOTAL, FREE)


def test_on_a_full_machine_the_limit_is_still_told(machine: DescribedMachine) -> None:
    machine.mount_2("/sys/fs/cgroup", own="/one")
    machine.memory_2("/sys/fs/cgroup/one", 12_000 * MB, 1000 * MB)
    found = room(machine)
    assert (found.total_bytes, found.free_bytes) == (12_000 * MB, FREE)
    assert str(found.bound) == "12.0 GB by memory.max of cgroup /one"


def test_address_space_is_a_limit_less_what_is_mapped(machine: DescribedMachine) -> None:
    machine.replace("proc/self/limits", "Max address space         unlimited ", "Max address space         1000000000")
    found = room(machine)
    assert (found.total_bytes, found.free_bytes) == (1000 * MB, 1000 * MB - 400_000 * 1024)
    assert source(machine) == "RLIMIT_AS (ulimit -v)"


def test_a_file_larger_than_the_address_space_that_is_left_is_refused_with_bytes(
    machine: DescribedMachine, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    with model.open("wb") as file:
        file.truncate(700 * MB)  # of zeros: it takes no room
    refuse_to_map(model, machine.root)
    machine.replace("proc/self/limits", "Max address space         unlimited ", "Max address space         1000000000")
    with pytest.raises(
        NoRoomError, match=r"700.0 MB of address space, and 590.4 MB are left .* by RLIMIT_AS"
    ) as refused:
        refuse_to_map(model, machine.root)
    assert refused.value.facts["needed_bytes"] == 700 * MB


def test_the_data_segment_is_a_limit_less_what_it_holds(machine: DescribedMachine) -> None:
    machine.replace("proc/self/limits", "Max data size             unlimited ", "Max data size             1000000000")
    assert room(machine).free_bytes == 1000 * MB - 100_000 * 1024
    assert source(machine) == "RLIMIT_DATA (ulimit -d)"


def test_weights_that_are_read_from_a_mapped_file_are_cache_but_not_free(machine: DescribedMachine) -> None:
    assert memory_room(TOTAL, FREE, machine.root, mapped_bytes=1000 * MB).free_bytes == FREE - 1000 * MB
    machine.mount_2("/sys/fs/cgroup", own="/one")
    machine.memory_2("/sys/fs/cgroup/one", 300 * MB, 250 * MB, 150 * MB)
    assert memory_room(TOTAL, FREE, machine.root, mapped_bytes=120 * MB).free_bytes == 80 * MB


def test_mapped_weights_count_once_against_the_address_space_which_holds_them(machine: DescribedMachine) -> None:
    machine.replace("proc/self/limits", "Max address space         unlimited ", "Max address space         1000000000")
    free = memory_room(TOTAL, FREE, machine.root, mapped_bytes=100 * MB, reserved_bytes=50 * MB).free_bytes
    assert free == 950 * MB - 400_000 * 1024


def test_a_long_or_odd_group_name_stays_one_short_phrase(machine: DescribedMachine) -> None:
    machine.mount_2("/sys/fs/cgroup", own="/" + "a" * 90 + "\tb")
    machine.memory_2("/sys/fs/cgroup/" + "a" * 90 + "\tb", 300 * MB)
    phrase = str(room(machine).bound)
    assert phrase.isprintable()
    assert len(phrase) < 150
    assert phrase.endswith("aaa?b")


def test_a_kill_for_want_of_memory_is_counted_in_the_own_group(machine: DescribedMachine) -> None:
    machine.mount_1("memory", "/sys/fs/cgroup/memory", own="/one")
    machine.memory_1("/sys/fs/cgroup/memory/one", 300 * MB, kills=2)
    machine.write("/proc/vmstat", "pgfault 9\noom_kill 7\n")
    assert memory_kills(machine.root) == 2


def test_a_kill_in_a_group_of_version_2_is_counted_there(machine: DescribedMachine) -> None:
    machine.mount_2("/sys/fs/cgroup", own="/one")
    machine.memory_2("/sys/fs/cgroup/one", "max", kills=3)
    assert memory_kills(machine.root) == 3


def test_without_groups_the_machine_s_kills_count(machine: DescribedMachine) -> None:
    assert memory_kills(machine.root) == 0
    machine.write("/proc/vmstat", "pgfault 9\noom_kill 7\n")
    assert memory_kills(machine.root) == 7


def test_a_machine_that_does_not_say_how_much_it_has_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> None:
        raise FileNotFoundError(2, "No such file or directory", "/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", read)
    with pytest.raises(SettingsError, match=r"/proc/meminfo.*mount /proc"):
        room_here()
