"""`ShardRunner`: the unsplit model's tokens in every mode, from any kind of program, and nothing left behind."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardnet import Answer, Piece, ShardRunner, split_model
from shardnet.bench.plain import PlainLlama
from shardnet.errors import ContextExceeded, EngineCrashed, NoRoomError, ShardnetError, UsageError
from shardnet.inference.engine.host import EngineProcess
from shardnet.library.answers import Options
from shardnet.library.devices import CPU, bind
from shardnet.library.runner import Mode
from tests.support.random_models import tiny_llama

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

PROMPT = "hello there, all of you"
GREEDY: Options = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
MESSAGES = [{"role": "user", "content": "hello"}]
MODES: list[tuple[Mode, list[str] | None]] = [
    ("simple", None),
    ("memory-efficient", None),
    ("distributed", None),
    ("distributed", ["cpu"]),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("whole") / "tiny.gguf")


@pytest.fixture(scope="module")
def folder(whole: Path) -> Path:
    return split_model(whole, shards=3, out=whole.parent / "cache", name="tiny", verify=False).folder


@pytest.fixture(scope="module")
def runner(folder: Path) -> Iterator[ShardRunner]:
    """One for all tests that leave it as it is."""
    with ShardRunner(folder, threads=1, n_seq=2, n_ctx=64) as runner:
        yield runner


def unsplit(whole: Path, answer: Answer) -> list[int]:
    with PlainLlama(whole, n_ctx=512, threads=1) as plain:
        return plain.generate(answer.prompt_token_ids, len(answer.token_ids)).tokens


def engines() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.mark.parametrize(("mode", "devices"), MODES)
def test_every_mode_gives_the_unsplit_models_tokens(
    whole: Path, folder: Path, mode: Mode, devices: list[str] | None
) -> None:
    before = engines()
    with ShardRunner(folder, mode=mode, devices=devices, threads=1, n_batch=8) as runner:
        answer = runner.complete(PROMPT, **GREEDY)
        assert len(answer.prompt_token_ids) > 8, "the prompt goes in several chunks"
        assert answer.token_ids == unsplit(whole, answer)
        assert (answer.finish_reason, answer.model, len(answer.token_ids)) == ("length", "tiny", 12)
        assert runner.complete(answer.prompt_token_ids, **GREEDY).token_ids == answer.token_ids
        chat = runner.chat(MESSAGES, **GREEDY)
        assert chat.token_ids == unsplit(whole, chat)
        assert set(runner.assignment) == (set(range(3)) if mode == "distributed" else set())
    assert engines() == before


def test_shards_on_two_devices_are_two_processes(folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices by name; a machine without GPUs has but one, so both are bound to the processor here."""
    monkeypatch.setattr("shardnet.library.chain.bind", lambda _device, environ: bind(CPU, environ))
    monkeypatch.setattr("shardnet.library.chain.is_there", lambda _device, _ready: True)
    before = engines()
    with ShardRunner(folder, mode="distributed", devices=["cpu", "CUDA0"], threads=1) as runner:
        assert runner.assignment == {0: "cpu", 1: "cpu", 2: "cuda:0"}
        assert len(engines()) == len(before) + 2
        answer = runner.complete(PROMPT, **GREEDY)
        assert answer.token_ids == unsplit(whole, answer)


def test_one_shard_at_a_time_holds_one_shard_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    really = EngineProcess.step

    def step(engine: EngineProcess, *arguments: Any) -> None:
        held.append(len(engine.shards))
        really(engine, *arguments)

    monkeypatch.setattr(EngineProcess, "step", step)
    with ShardRunner(folder, mode="memory-efficient", threads=1) as runner:
        assert len(runner.complete(PROMPT, **GREEDY).token_ids) == 12
    assert held == [1] * 36, "each token goes through three shards, and each is alone"


def test_a_model_that_does_not_fit_is_refused_with_bytes_and_leaves_nothing(folder: Path) -> None:
    before = engines()
    with pytest.raises(NoRoomError, match="memory_limit_bytes") as caught:
        ShardRunner(folder, threads=1, memory_limit_bytes=2_000_000)
    assert caught.value.facts["free_bytes"] == 2_000_000
    assert engines() == before


def test_sampled_answers_depend_on_the_seed_and_stops_end_them(runner: ShardRunner) -> None:
    first, second = (runner.complete(PROMPT, max_tokens=12, seed=7, ignore_eos=True) for _ in range(2))
    assert first.token_ids == second.token_ids
    stop = first.text[4:6]
    stopped = runner.complete(PROMPT, max_tokens=12, seed=7, ignore_eos=True, stop=stop)
    assert stopped.finish_reason == "stop"
    assert stopped.text == first.text[: first.text.index(stop)]


def test_an_answer_follows_a_structure(runner: ShardRunner) -> None:
    for seed in range(2):
        assert runner.chat(MESSAGES, seed=seed, json_schema={"enum": ["yes", 7]}).text in ('"yes"', "7")
        assert runner.chat(MESSAGES, seed=seed, regex="yes|no").text in ("yes", "no")
        assert runner.complete(PROMPT, seed=seed, grammar='root ::= "yes" | "no"').text in ("yes", "no")
    with pytest.raises(UsageError, match="regex: is no text"):
        runner.complete(PROMPT, regex="\ud800")


def test_pieces_come_one_by_one_and_make_the_answer(runner: ShardRunner) -> None:
    answer = runner.complete(PROMPT, **GREEDY)
    pieces = list(runner.stream(PROMPT, **GREEDY))
    assert len(pieces) == 12
    assert "".join(map(str, pieces)) == answer.text
    assert [piece.finish_reason for piece in pieces] == [None] * 11 + ["length"]
    parts: list[str] = []
    assert runner.complete(PROMPT, on_text=parts.append, **GREEDY).text == "".join(parts)


def test_a_stream_that_is_left_frees_its_place(folder: Path) -> None:
    with ShardRunner(folder, threads=1, n_seq=1) as runner:
        pieces = runner.stream(PROMPT, **GREEDY)
        assert isinstance(next(pieces), Piece)
        pieces.close()
        assert len(list(itertools.islice(runner.stream(PROMPT, **GREEDY), 3))) == 3
        assert len(runner.complete(PROMPT, **GREEDY).token_ids) == 12


def test_ctrl_c_ends_an_answer_and_the_runner_answers_on(runner: ShardRunner) -> None:
    with pytest.raises(KeyboardInterrupt):
        runner.complete(PROMPT, on_text=lambda _text: os.kill(os.getpid(), signal.SIGINT), **GREEDY)
    for _ in range(2):
        assert len(runner.complete(PROMPT, **GREEDY).token_ids) == 12


@pytest.mark.parametrize("mode", ["simple", "memory-efficient"])
def test_several_threads_may_ask_at_once(folder: Path, mode: Mode) -> None:
    with ShardRunner(folder, mode=mode, threads=1, n_seq=2) as runner:
        alone = runner.complete(PROMPT, **GREEDY).token_ids
        found: list[list[int]] = []
        threads = [
            threading.Thread(target=lambda: found.append(runner.complete(PROMPT, **GREEDY).token_ids)) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [alone] * 3


async def test_it_works_beside_a_running_loop(runner: ShardRunner) -> None:
    answer = runner.complete(PROMPT, **GREEDY)
    assert (await asyncio.to_thread(runner.complete, PROMPT, **GREEDY)).token_ids == answer.token_ids


SCRIPT = """
import sys
from shardnet import ShardRunner
runner = ShardRunner(sys.argv[1], threads=1)
print(len(runner.complete("hello", max_tokens=4, ignore_eos=True).token_ids), runner._chain._engines[0].pid)
"""


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_script_without_a_main_guard_works_and_leaves_no_process_however_it_ends(folder: Path, end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-uc", SCRIPT + end, str(folder)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == (-9 if "kill" in end else 0), done.stderr
    n_tokens, pid = map(int, done.stdout.split())
    assert n_tokens == 4
    assert done.stderr == "", "it says nothing where nothing is wrong"
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(10)


def test_a_crash_is_one_error_and_the_next_request_works(folder: Path) -> None:
    before_it = set(engines())
    with ShardRunner(folder, threads=1) as runner:
        before = runner.complete(PROMPT, **GREEDY)
        pieces = runner.stream(PROMPT, **GREEDY)
        next(pieces)
        (engine,) = set(engines()) - before_it
        engine.kill()
        with pytest.raises(EngineCrashed):
            list(pieces)
        assert runner.complete(PROMPT, **GREEDY).token_ids == before.token_ids


def test_what_cannot_be_is_said_in_our_own_words(folder: Path, tmp_path: Path) -> None:
    with ShardRunner(folder, threads=1, n_ctx=64) as runner:
        wrong: list[tuple[Options, str]] = [
            ({"temperature": -1}, "temperature"),
            ({"stops": "x"}, "there is no option 'stops'"),  # type: ignore[typeddict-unknown-key]
            ({"logit_bias": {"99999": 1}}, "logit_bias: token 99999"),
        ]
        for options, sentence in wrong:
            with pytest.raises(UsageError, match=sentence):
                runner.complete(PROMPT, **options)
        with pytest.raises(ContextExceeded):
            runner.complete([1] * 64)
        with pytest.raises(UsageError, match="prompt"):
            runner.complete([])
        with pytest.raises(UsageError, match="messages"):
            runner.chat([{"content": "hi"}])
        assert len(runner.complete(PROMPT, **GREEDY).token_ids) == 12
    with pytest.raises(UsageError, match="closed"):
        runner.complete(PROMPT)
    makes: list[Callable[[], ShardRunner]] = [
        lambda: ShardRunner(tmp_path),
        lambda: ShardRunner(folder, mode="fast"),  # type: ignore[arg-type]
        lambda: ShardRunner(folder, devices=["cpu"]),
        lambda: ShardRunner(folder, mode="distributed", devices=["cuda:63"]),
        lambda: ShardRunner(folder, n_seq=0),
    ]
    for make in makes:
        with pytest.raises(ShardnetError):
            make()
