"""How far a load is: half by what was read, half by what llama.cpp has been through, and never less than before."""

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


def test_what_was_read_and_what_was_gone_through_count_half_each() -> None:
    seen = course().seen(Sample(10.5, 900, 3.25), 0.2)
    assert (seen.done_bytes, seen.total_bytes) == (300, 1000)
    assert seen.bytes_per_s == pytest.approx(600)
    assert seen.memory_bytes == 900
    assert seen.cpu_cores == pytest.approx(0.5)


def test_reading_alone_is_half_of_it_however_much_memory_is_taken() -> None:
    assert course().seen(Sample(10.5, 90_000, 3.0), 0.0).done_bytes == 500


def test_what_llama_cpp_is_through_with_is_done_wherever_it_lies() -> None:
    assert course().seen(Sample(10.5, 500, 3.0), 1.0).done_bytes == 1000


def test_progress_never_goes_back() -> None:
    one = course()
    assert one.seen(Sample(11.0, 1300, 3.0), 0.0).done_bytes == 400
    back = one.seen(Sample(12.0, 600, 3.0), 0.1)
    assert (back.done_bytes, back.bytes_per_s) == (400, 0)


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
