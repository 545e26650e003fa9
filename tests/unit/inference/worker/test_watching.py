"""How far a load is: llama.cpp's word or the growth of resident memory, whichever is more, and never less than before."""

from __future__ import annotations

import threading

import pytest

from shardnet.inference.engine.protocol import Load
from shardnet.inference.worker import watching
from shardnet.inference.worker.watching import LoadCourse, LoadWatch, Progress, Sample
from shardnet.messages import ShardOptions

LOAD = Load(command_id="c" * 16, model_id="a" * 64, shard_id=0, path="/m.gguf", options=ShardOptions())


def course() -> LoadCourse:
    return LoadCourse(LOAD, 1000, Sample(10.0, 500, 3.0))


def test_bytes_that_llama_cpp_has_not_told_of_are_seen_in_resident_memory() -> None:
    seen = course().seen(Sample(10.5, 900, 3.25), 0.1)
    assert (seen.done_bytes, seen.total_bytes) == (400, 1000)
    assert seen.bytes_per_s == pytest.approx(800)
    assert seen.memory_bytes == 900
    assert seen.cpu_cores == pytest.approx(0.5)


def test_llama_cpp_s_word_counts_where_memory_was_there_already() -> None:
    assert course().seen(Sample(10.5, 500, 3.0), 0.75).done_bytes == 750


def test_progress_never_goes_back_nor_beyond_the_end() -> None:
    one = course()
    assert one.seen(Sample(11.0, 1300, 3.0), 0.0).done_bytes == 800
    back = one.seen(Sample(12.0, 600, 3.0), 0.3)
    assert (back.done_bytes, back.bytes_per_s) == (800, 0)
    assert one.seen(Sample(13.0, 9000, 3.0), 0.3).done_bytes == 1000


def test_a_load_is_watched_while_it_runs_and_not_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "INTERVAL_S", 0.001)
    reports: list[Progress] = []
    came = threading.Event()

    def report(progress: Progress) -> None:
        reports.append(progress)
        if progress.done_bytes == 1000:
            came.set()

    with LoadWatch(LOAD, 1000, report) as watch:
        watch.handled(2.0)
        assert came.wait(10)
    assert reports[-1].memory_bytes > 0
    assert not [thread for thread in threading.enumerate() if thread.name == "load-watch"]
