"""Pages of a mapped file: read before they are needed, and let go behind."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet.inference.llama.read_ahead import PIECE_BYTES, ReadAhead, mappings_of, pieces
from shardnet.inference.llama.residency import Extent

PAGE = mmap.PAGESIZE
STAGE = 512 * PAGE
STRAY = STAGE // PAGE // 4
"""Pages around those that were read, which the kernel may map along with them."""
N_STAGES = 6
PATIENCE_S = 10.0

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell its mappings")


class MappedFile:
    """A file of `N_STAGES` stages, mapped as llama.cpp maps one."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(os.urandom(PAGE) * (N_STAGES * STAGE // PAGE))
        self.path = path
        with path.open("rb") as file:
            os.fsync(file.fileno())
            self.map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
        self.stages = [[Extent(path, number * STAGE, STAGE)] for number in range(N_STAGES)]

    def mapped_pages(self) -> list[int]:
        """Returns: for each stage how many of its pages this process has in its page table. Source: proc_pid_pagemap(5), bit 63."""
        ((first, _end, _offset),) = mappings_of(self.path)
        with Path("/proc/self/pagemap").open("rb") as table:
            table.seek(first // PAGE * 8)
            entries = memoryview(table.read(N_STAGES * STAGE // PAGE * 8)).cast("Q")
        present = [bool(entry >> 63) for entry in entries]
        per_stage = STAGE // PAGE
        return [sum(present[number * per_stage : (number + 1) * per_stage]) for number in range(N_STAGES)]

    def wait_for(self, wanted: dict[int, bool]) -> None:
        """Wait until these stages are in memory as a whole, or hardly any of them."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            pages = self.mapped_pages()
            whole = STAGE // PAGE
            if all(pages[stage] == whole if is_there else pages[stage] <= STRAY for stage, is_there in wanted.items()):
                return
            time.sleep(0.005)
        pytest.fail(f"stages have {self.mapped_pages()} pages in memory, and {wanted} was to come")


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[MappedFile]:
    file = MappedFile(tmp_path / "weights")
    yield file
    file.map.close()


def test_two_stages_pass_through_a_budget_of_two_and_no_more(mapped: MappedFile) -> None:
    with ReadAhead(mapped.stages, 2 * STAGE, passes=2) as ahead:
        mapped.wait_for({0: True, 1: True, 2: False, 3: False, 4: False, 5: False})
        ahead.stage_done(0)
        mapped.wait_for({0: False, 1: True, 2: True, 3: False})
        for stage in range(1, N_STAGES):
            ahead.stage_done(stage)
        mapped.wait_for({0: True, 1: True, 2: False, 5: False})  # the next pass begins


def test_what_stays_is_read_once_and_not_dropped(mapped: MappedFile) -> None:
    """Three stages, twice as large as elsewhere. The first half of each stays, and there is room for two other halves."""
    stages = [[Extent(mapped.path, number * 2 * STAGE, 2 * STAGE)] for number in range(N_STAGES // 2)]
    with ReadAhead(stages, 5 * STAGE, passes=None) as ahead:
        assert (ahead.stays_bytes, ahead.pass_bytes) == (3 * STAGE, 3 * STAGE)
        ahead.begin_pass()
        mapped.wait_for({0: True, 1: True, 2: True, 3: True, 5: False})
        ahead.stage_done(0)
        mapped.wait_for({0: True, 1: False, 2: True, 3: True, 4: True, 5: True})
        ahead.stage_done(1)
        mapped.wait_for({0: True, 1: True, 2: True, 3: False, 4: True, 5: True})  # the next pass begins
        ahead.stage_done(2)
        mapped.wait_for({0: True, 1: True, 2: True, 3: True, 4: True, 5: False})


def test_a_smaller_budget_is_kept_to_at_once_and_a_larger_one_from_the_next_pass_on(mapped: MappedFile) -> None:
    with ReadAhead(mapped.stages, N_STAGES * STAGE, passes=None) as ahead:
        mapped.wait_for(dict.fromkeys(range(N_STAGES), True))
        ahead.set_budget(2 * STAGE)
        mapped.wait_for({0: True, 1: True, 2: False, 3: False, 4: False, 5: False})
        ahead.set_budget(N_STAGES * STAGE)
        mapped.wait_for(dict.fromkeys(range(N_STAGES), True))


def test_the_computing_thread_meets_each_stage_in_memory(mapped: MappedFile) -> None:
    whole = STAGE // PAGE
    with ReadAhead(mapped.stages, 2 * STAGE, passes=2) as ahead:
        for _ in range(2):
            ahead.begin_pass()
            for stage in range(N_STAGES):
                assert mapped.mapped_pages()[stage] == whole
                ahead.stage_done(stage)
        ahead.begin_pass()  # nothing is to be read, so there is nothing to wait for


def test_nothing_is_read_after_the_last_pass(mapped: MappedFile) -> None:
    with ReadAhead(mapped.stages, 2 * STAGE, passes=1) as ahead:
        ahead.stage_done(N_STAGES - 2)
        ahead.pass_done()
        ahead.pass_done()  # said twice, counted once
        mapped.wait_for(dict.fromkeys(range(N_STAGES), False))


def test_without_a_last_pass_the_next_one_is_always_made_ready(mapped: MappedFile) -> None:
    with ReadAhead(mapped.stages, 2 * STAGE, passes=None) as ahead:
        for _ in range(3):
            mapped.wait_for({0: True, 1: True, 2: False, 5: False})
            for stage in range(N_STAGES):
                ahead.stage_done(stage)
            ahead.pass_done()


def test_where_everything_stays_nothing_is_dropped_and_the_thread_rests(mapped: MappedFile) -> None:
    with ReadAhead(mapped.stages, N_STAGES * STAGE, passes=None) as ahead:
        mapped.wait_for(dict.fromkeys(range(N_STAGES), True))
        began_s = time.process_time()
        time.sleep(0.1)
        assert time.process_time() - began_s < 0.05
        for stage in range(N_STAGES):
            ahead.stage_done(stage)
        mapped.wait_for(dict.fromkeys(range(N_STAGES), True))


def test_a_file_that_is_not_mapped_is_read_into_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(4 * PAGE))
    with ReadAhead([[Extent(path, 0, 4 * PAGE)]], PAGE, passes=1) as ahead:
        ahead.pass_done()
    assert not any(thread.name == "read ahead" for thread in threading.enumerate())


def test_pieces_are_the_same_bytes_in_order(tmp_path: Path) -> None:
    cut = list(pieces([Extent(tmp_path, 7, 2 * PIECE_BYTES + 3), Extent(tmp_path, 0, 1)]))
    assert [piece.nbytes for piece in cut] == [PIECE_BYTES, PIECE_BYTES, 3, 1]
    assert [piece.offset for piece in cut] == [7, 7 + PIECE_BYTES, 7 + 2 * PIECE_BYTES, 0]


def test_a_mapping_is_found_where_it_is(mapped: MappedFile) -> None:
    ((first, end, offset),) = mappings_of(mapped.path)
    assert (end - first, offset) == (N_STAGES * STAGE, 0)
    assert ctypes.string_at(first, 32) == mapped.map[:32]
