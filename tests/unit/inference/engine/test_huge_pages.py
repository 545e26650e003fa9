"""When an engine is started so that it gets huge pages, and when it knows that it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardnet.inference.engine.huge_pages import environment_for, gets_huge_pages

ASKED = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
MADVISE = "always [madvise] never"


def kernel(root: Path, enabled: str, size: str = "2097152") -> Path:
    folder = root / "sys/kernel/mm/transparent_hugepage"
    folder.mkdir(parents=True)
    (folder / "enabled").write_text(f"{enabled}\n")
    (folder / "hpage_pmd_size").write_text(f"{size}\n")
    return root


def test_the_library_is_told_to_ask_where_the_kernel_wants_to_be_asked(tmp_path: Path) -> None:
    root = kernel(tmp_path, MADVISE)
    assert environment_for({}, root) == ASKED
    assert gets_huge_pages(ASKED, root, "glibc 2.36")
    assert gets_huge_pages({"GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"}, root, "glibc 3.0")


@pytest.mark.parametrize("glibc", ["glibc 2.34", "glibc 2.35-odd", "musl 1.2.5", ""])
def test_a_library_that_does_not_ask_gets_none(tmp_path: Path, glibc: str) -> None:
    assert not gets_huge_pages(ASKED, kernel(tmp_path, MADVISE), glibc)


def test_a_kernel_that_always_gives_them_is_not_asked(tmp_path: Path) -> None:
    root = kernel(tmp_path, "[always] madvise never")
    assert environment_for({}, root) == {}
    assert gets_huge_pages({}, root, "")


def test_the_users_own_tunables_stay_and_win(tmp_path: Path) -> None:
    root = kernel(tmp_path, MADVISE)
    own = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
    assert environment_for(own, root) == {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"}
    refused = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    assert environment_for(refused, root) == {}
    assert not gets_huge_pages(refused, root, "glibc 2.36")


@pytest.mark.parametrize(
    ("enabled", "size"), [("always madvise [never]", "2097152"), (MADVISE, str(512 << 20)), (MADVISE, ""), ("", "4096")]
)
def test_none_are_wanted_where_the_kernel_gives_none_or_enormous_ones(tmp_path: Path, enabled: str, size: str) -> None:
    root = kernel(tmp_path, enabled, size)
    assert environment_for({}, root) == {}
    assert not gets_huge_pages(ASKED, root, "glibc 2.36")


def test_a_system_without_such_files_has_none(tmp_path: Path) -> None:
    assert environment_for({}, tmp_path) == {}
    assert not gets_huge_pages(ASKED, tmp_path, "glibc 2.36")
