"""How often the kernel has killed a process for want of memory: two readings tell whether one that died in between may be such a one.

The counters also count kills because the whole machine was full. Source: cgroup-v2.rst (`memory.events`), cgroup-v1/memory.rst
(`memory.oom_control`).
"""

from __future__ import annotations

from pathlib import Path

from shardnet.limits.cgroups import ROOT, groups_of, read_text


def memory_kills(root: Path = ROOT) -> int:
    """Returns: kills so far in this process's own group, to which its children belong; where no group counts, on the machine."""
    for group in groups_of("memory", root):
        for file in ("memory.oom_control", "memory.events"):
            count = group.table(file).get("oom_kill")
            if count is not None:
                return count
    rows = [line.split() for line in read_text(root / "proc/vmstat").splitlines()]
    return next((int(row[1]) for row in rows if row[0] == "oom_kill"), 0)
