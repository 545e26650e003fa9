"""Whether what this process allocates comes in huge pages, and how a process is started so that it does.

A matrix product reads every weight once, and each page of 4 KiB costs a look into the page tables; pages of 2 MiB cost next to none. The kernel gives
them for memory that is nobody's file, either always or where it is asked to (`madvise`), and the C library asks for all that it allocates
if its tunable says so. A kernel that has none at hand gives small ones, and nothing fails.

Knows Linux's files and glibc's tunable. Refuses to know weights. Source: the kernel's transhuge.rst; glibc's manual, "Memory Allocation Tunables".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from shardnet.limits.cgroups import ROOT, read_text

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
FIRST_GLIBC = (2, 35)
MOST_PAGE_BYTES = 4 << 20
"""Where a huge page is larger (512 MiB on some processors with base pages of 64 KiB), glibc's heap would grow by as much at a time."""
_FOLDER = Path("sys/kernel/mm/transparent_hugepage")


def environment_for(given: Mapping[str, str], root: Path = ROOT) -> dict[str, str]:
    """Returns: variables for a process that is to get huge pages, beside those that it is given; none where they would be of no use.

    What the user's own tunables say stays, and wins.
    """
    if _mode(root) != "madvise" or any(name == TUNABLE for name, _value in _tunables(given)):
        return {}
    own = given.get(VARIABLE, "")
    return {VARIABLE: f"{own}:{TUNABLE}=1" if own else f"{TUNABLE}=1"}


def gets_huge_pages(environ: Mapping[str, str] = os.environ, root: Path = ROOT, glibc: str | None = None) -> bool:
    """Returns: True if large allocations of the process that was started with this environment come in huge pages.

    Args:
        glibc: as `glibc 2.36`; None: this process's own.
    """
    mode = _mode(root)
    if mode != "madvise":
        return mode == "always"
    is_asked = dict(_tunables(environ)).get(TUNABLE) == "1"
    return is_asked and _version(_own_glibc() if glibc is None else glibc) >= FIRST_GLIBC


def _mode(root: Path) -> str:
    """Returns: `always`, `madvise`, or `never`, also where the kernel has none, or only enormous ones."""
    size = read_text(root / _FOLDER / "hpage_pmd_size").strip()
    if not size.isdecimal() or int(size) > MOST_PAGE_BYTES:
        return "never"
    chosen = [word for word in read_text(root / _FOLDER / "enabled").split() if word.startswith("[")]
    return chosen[0].strip("[]") if chosen else "never"


def _tunables(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in environ.get(VARIABLE, "").split(":")]
    return [(name, value) for name, _, value in pairs]


def _own_glibc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ""


def _version(text: str) -> tuple[int, ...]:
    """Returns: (2, 36) for `glibc 2.36`; () for another C library."""
    name, _, version = text.partition(" ")
    parts = version.split(".")
    return tuple(map(int, parts)) if name == "glibc" and all(part.isdecimal() for part in parts) else ()
