"""Machines described as the files that the kernel would show: `/proc` and mounted control groups below a folder that stands for `/`."""

from __future__ import annotations

from pathlib import Path

NO_LIMIT_1 = "9223372036854771712"
"""How version 1 says that there is none."""


class DescribedMachine:
    """A machine's files, written one by one into `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._mounts: list[str] = ["22 1 254:0 / / rw,relatime - ext4 /dev/vda rw"]
        self._own: list[str] = []
        self.write(
            "proc/self/status",
            "Name:\tpython\nGroups:\t\nVmSize:\t  400000 kB\nVmData:\t  100000 kB\nCpus_allowed_list:\t0-7\n",
        )
        self.write(
            "proc/self/limits",
            "Limit                     Soft Limit           Hard Limit           Units     \n"
            "Max data size             unlimited            unlimited            bytes     \n"
            "Max address space         unlimited            unlimited            bytes     \n",
        )

    def write(self, path: str, text: str) -> None:
        """A file anywhere below `/`."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def replace(self, path: str, old: str, new: str) -> None:
        """Alter a file that is there."""
        text = (self.root / path).read_text()
        assert old in text
        self.write(path, text.replace(old, new))

    def mount_1(self, controller: str, folder: str, *, shows: str = "/", own: str) -> None:
        """Mount a hierarchy of version 1 that shows the group `shows`; this process is in `own`."""
        self._mount(f"{shows} {folder.replace(' ', chr(92) + '040')} rw,relatime - cgroup cgroup rw,{controller}")
        self._is_in(f"{len(self._own) + 1}:{controller}:{own}")

    def mount_2(self, folder: str, *, shows: str = "/", own: str) -> None:
        """Mount the hierarchy of version 2."""
        self._mount(f"{shows} {folder} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate")
        self._is_in(f"0::{own}")

    def memory_1(self, folder: str, limit: int | str, used: int = 0, cache: int = 0, *, kills: int = 0) -> None:
        """A memory group of version 1."""
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{used}\n")
        self.write(f"{folder}/memory.use_hierarchy", "1\n")
        self.write(f"{folder}/memory.stat", f"cache {cache}\ntotal_inactive_file {cache}\ntotal_active_file 0\n")
        self.write(f"{folder}/memory.oom_control", f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")

    def memory_2(self, folder: str, limit: int | str, used: int = 0, cache: int = 0, *, kills: int = 0) -> None:
        """A memory group of version 2 below its root."""
        self.write(f"{folder}/memory.max", f"{limit}\n")
        self.write(f"{folder}/memory.high", "max\n")
        self.write(f"{folder}/memory.current", f"{used}\n")
        self.write(f"{folder}/memory.stat", f"anon {used - cache}\ninactive_file {cache}\nactive_file 0\n")
        self.write(f"{folder}/memory.events", f"low 0\nhigh 0\nmax 0\noom {kills}\noom_kill {kills}\n")

    def _mount(self, rest: str) -> None:
        self._mounts.append(f"{len(self._mounts) + 30} 22 0:{len(self._mounts) + 27} {rest}")
        self.write("proc/self/mountinfo", "\n".join(self._mounts) + "\n")

    def _is_in(self, row: str) -> None:
        self._own.append(row)
        self.write("proc/self/cgroup", "\n".join(self._own) + "\n")
