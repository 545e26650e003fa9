"""How many processors this process can keep busy: physical cores, its affinity, and the quotas of its control groups.

The kernel keeps a process's affinity within its cpusets, so that one list holds both. Of a quota only whole processors count: threads wait for one
another in every layer, and while the kernel holds one back the others spin, which uses up what is left.

Source: sched(7), cgroup-v2.rst (`cpu.max`), sched-bwc.rst.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from shardnet.limits.cgroups import ROOT, Group, groups_of, read_text
from shardnet.log import counted


@dataclass(frozen=True, slots=True)
class Processors:
    """Threads that run at the same time, and what bounds them below the machine's cores; "" if nothing does."""

    threads: int
    limit: str = ""


def usable_processors(physical_cores: int, root: Path = ROOT) -> Processors:
    """Returns: the machine's cores, within every limit of this process; at least one."""
    found = Processors(max(1, physical_cores))
    bound = _affinity(root)
    if bound is not None and bound < found.threads:
        found = Processors(max(1, bound), f"affinity or cpuset of {counted(bound, 'processor')}")
    for group in groups_of("cpu", root):
        quota, source = _quota(group)
        if quota < found.threads:
            found = Processors(
                max(1, math.floor(quota)), f"quota of {quota:.4g} processors by {source} of cgroup {group.label}"
            )
    return found


def _affinity(root: Path) -> int | None:
    """Returns: how many processors the scheduler may use; None if that cannot be read."""
    for line in read_text(root / "proc/self/status").splitlines():
        name, _, text = line.partition(":")
        if name == "Cpus_allowed_list":
            ranges = [part.strip().split("-") for part in text.split(",")]
            if all(bound.isdecimal() for part in ranges for bound in part):
                return sum(int(part[-1]) - int(part[0]) + 1 for part in ranges)
    return None


def _quota(group: Group) -> tuple[float, str]:
    """Returns: processors' worth of time, infinite without a quota, and the file that says so."""
    words = group.words("cpu.max")
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
        return int(words[0]) / int(words[1]), "cpu.max"
    quota, period = group.number("cpu.cfs_quota_us"), group.number("cpu.cfs_period_us")
    if quota and period:
        return quota / period, "cpu.cfs_quota_us"
    return math.inf, ""
