"""An engine process that ends, by a signal whenever it comes, is an event, and what was there before is there again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from shardnet.errors import EngineCrashed, GgufError, SequenceGap, ShardNotFound
from shardnet.inference.engine import spawning
from shardnet.inference.engine.host import EngineProcess, Restored
from shardnet.inference.engine.settings import InferenceSettings
from tests.support import dying_process
from tests.support.engine_world import PROMPT, Route, SplitModel, Stage, load_request, split
from tests.support.random_models import tiny_llama


class Watched(EngineProcess):
    """An engine that keeps what it told about its restarts."""

    def __init__(self) -> None:
        super().__init__(InferenceSettings(threads=1), on_restart=self._note)
        self.restarts: asyncio.Queue[Restored] = asyncio.Queue()

    def _note(self, restored: Restored) -> None:
        self.restarts.put_nowait(restored)

    def signal(self, number: int) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SplitModel:
    folder = tmp_path_factory.mktemp("tiny")
    return split(tiny_llama(folder / "tiny.gguf", tied=False), 2, folder / "cache")


@pytest.fixture
def other(tiny: SplitModel, tmp_path: Path) -> SplitModel:
    """A valid shard of another model, in a file of its own."""
    copy = tmp_path / "shard-0.gguf"
    copy.write_bytes(tiny.shards[0].read_bytes())
    return SplitModel("b" * 64, copy, (copy,))


@pytest_asyncio.fixture
async def engine(tiny: SplitModel, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    """The real engine process, which can be made to end while it loads (`dying_process.mortal`)."""
    monkeypatch.setattr(spawning, "COMMAND", dying_process.command("shardnet.inference.worker.process"))
    engine = Watched()
    await engine.start()
    try:
        await Stage(engine, tiny, (0, 2)).load()
        yield engine
    finally:
        await engine.close()


async def crash(engine: Watched) -> None:
    """Kill the engine; when this returns it is away."""
    engine.signal(signal.SIGSTOP)
    report = asyncio.create_task(engine.report())
    await asyncio.sleep(0)
    engine.signal(signal.SIGKILL)
    with pytest.raises(EngineCrashed):
        await report


def sequence(engine: EngineProcess, tiny: SplitModel) -> Route:
    return Route([Stage(engine, tiny, (0, 2))])


async def test_every_task_under_way_learns_of_the_crash_and_the_engine_comes_back(
    engine: Watched, tiny: SplitModel
) -> None:
    expected, _ = await sequence(engine, tiny).generate(PROMPT, 10)
    before = engine.pid
    engine.signal(signal.SIGSTOP)
    tasks = [asyncio.create_task(sequence(engine, tiny).step(0, PROMPT)) for _ in range(3)]
    report = asyncio.create_task(engine.report())
    await asyncio.sleep(0)
    engine.signal(signal.SIGKILL)
    for result in await asyncio.gather(*tasks, report, return_exceptions=True):
        assert isinstance(result, EngineCrashed)
        assert "signal 9" in result.message
    restored = await engine.restarts.get()
    assert len(restored.shards) == 2
    assert not restored.lost
    assert engine.pid != before
    again, _ = await sequence(engine, tiny).generate(PROMPT, 10)
    assert again == expected


async def test_a_step_while_the_engine_is_away_waits_for_it(engine: Watched, tiny: SplitModel) -> None:
    route = sequence(engine, tiny)
    expected, _ = await route.generate(PROMPT, 5)
    await crash(engine)
    with pytest.raises(SequenceGap) as gap:
        await route.step(len(PROMPT) + 5, [expected[-1]])
    assert gap.value.facts["have"] == 0
    assert (await route.generate(PROMPT, 5))[0] == expected


async def test_a_load_under_way_is_done_by_the_next_process(engine: Watched, tiny: SplitModel) -> None:
    await engine.unload(tiny.model_id, 1)
    engine.signal(signal.SIGSTOP)
    load = asyncio.create_task(engine.load(load_request(tiny, 1)))
    await asyncio.sleep(0.01)
    engine.signal(signal.SIGKILL)
    assert (await load).request.shard_id == 1
    assert len((await sequence(engine, tiny).generate(PROMPT, 3))[0]) == 3


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
async def test_a_shard_whose_loading_ends_the_engine_twice_is_given_up(
    engine: Watched, tiny: SplitModel, other: SplitModel, number: signal.Signals
) -> None:
    dying_process.mortal(other.whole, number)
    with pytest.raises(
        EngineCrashed,
        match=rf"died twice while it loaded shard 0 .*given up.*signal {number:d}.*{dying_process.LAST_WORDS} shard-0",
    ):
        await engine.load(load_request(other, 0))
    assert len((await sequence(engine, tiny).generate(PROMPT, 3))[0]) == 3
    assert len(engine.shards) == 2


async def test_a_shard_that_cannot_be_loaded_again_is_lost_alone(
    engine: Watched, tiny: SplitModel, other: SplitModel
) -> None:
    await engine.load(load_request(other, 0))
    dying_process.mortal(other.whole, signal.SIGSEGV)
    engine.signal(signal.SIGKILL)
    restored = await engine.restarts.get()
    assert [key for key, _ in restored.lost] == [("b" * 64, 0)]
    assert isinstance(restored.lost[0][1], EngineCrashed)
    assert len(restored.shards) == 2
    with pytest.raises(ShardNotFound):
        await Route([Stage(engine, other, (0, 1))]).step(0, PROMPT)
    assert len((await sequence(engine, tiny).generate(PROMPT, 3))[0]) == 3


@pytest.mark.parametrize("how", ["no GGUF", "cut off", "another version"])
async def test_a_file_that_is_refused_never_reaches_llama_cpp(engine: Watched, other: SplitModel, how: str) -> None:
    """The note would end the process if the file came as far as llama.cpp: our own reading of it comes first."""
    whole = other.whole.read_bytes()
    other.whole.write_bytes(
        {"no GGUF": b"no model" * 99, "cut off": whole[:-99], "another version": whole[:4] + b"\x63" + whole[5:]}[how]
    )
    dying_process.mortal(other.whole, signal.SIGSEGV)
    before = engine.pid
    with pytest.raises(GgufError, match=r"shard-0\.gguf"):
        await engine.load(load_request(other, 0))
    await engine.report()
    assert engine.pid == before


async def test_a_file_that_vanished_is_lost_alone(engine: Watched, other: SplitModel) -> None:
    await engine.load(load_request(other, 0))
    other.whole.unlink()
    engine.signal(signal.SIGKILL)
    restored = await engine.restarts.get()
    assert "cannot read" in str(restored.lost[0][1])
    assert len(restored.shards) == 2


async def test_crash_after_crash_is_survived(engine: Watched, tiny: SplitModel) -> None:
    for _ in range(3):
        engine.signal(signal.SIGKILL)
        await engine.restarts.get()
    assert len((await sequence(engine, tiny).generate(PROMPT, 3))[0]) == 3


async def test_close_in_the_middle_of_a_restart_leaves_nothing(engine: Watched) -> None:
    await crash(engine)
    await engine.close()
    assert engine.shards == ()
    with pytest.raises(EngineCrashed, match="not running"):
        await engine.report()


async def test_a_cancelled_step_harms_nobody(engine: Watched, tiny: SplitModel) -> None:
    engine.signal(signal.SIGSTOP)
    step = asyncio.create_task(sequence(engine, tiny).step(0, PROMPT))
    await asyncio.sleep(0.01)
    step.cancel()
    engine.signal(signal.SIGCONT)
    with pytest.raises(asyncio.CancelledError):
        await step
    assert len((await sequence(engine, tiny).generate(PROMPT, 3))[0]) == 3


async def test_the_terminals_signals_do_not_end_the_engine(engine: Watched) -> None:
    before = engine.pid
    engine.signal(signal.SIGINT)
    engine.signal(signal.SIGTERM)
    await engine.report()
    assert engine.pid == before


DAEMON = """
import asyncio, time
from shardnet.inference.engine.host import EngineProcess

async def main():
    engine = EngineProcess()
    ready = await engine.start()
    print(ready.pid, flush=True)
    time.sleep(600)

asyncio.run(main())
"""


async def test_the_engine_does_not_outlive_its_daemon() -> None:
    daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", DAEMON, stdout=PIPE, stderr=DEVNULL)
    try:
        assert daemon.stdout is not None
        # Behind the log line that says the same for people.
        lines = [await daemon.stdout.readline() for _ in range(2)]
        child = psutil.Process(int(lines[-1]))
    finally:
        daemon.kill()
        await daemon.communicate()
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [child], 10)
    assert gone
