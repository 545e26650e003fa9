"""A model in less memory than it has weights: streamed by shardnet's engine, mapped by llama.cpp in the same limit, and resident without one.

    python -m tests.bench.bench_streamed MODEL.gguf [--share 0.6] [--tokens 24] [--rounds 2] [--copy FOLDER] [--only streamed,mapped-1,...]

All in turns, in one run. Each side is a process of its own, the limited ones in a control group of memory (version 1 or 2), which takes root; the
file is dropped from the page cache before each. `--copy` works on a copy in that folder, for where somebody else has the file open. Prints JSON
lines: tokens per second after the prompt, bytes that the process read from the disk for each token, the group's peak; then medians and ratios.
Answers are compared: those of streamed weights with those of resident ones that are not repacked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.llama.batch import single_sequence_rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.messages import ShardOptions
from tests.support.engine_world import PROMPT, Route, SplitModel, Stage
from tests.support.small_groups import memory_group

OPTIONS = ShardOptions(n_ctx=512, n_seq=1, n_batch=64)
LIMITED = ("streamed", "mapped-1", "mapped-2")
UNLIMITED = ("resident", "unrepacked")
PEAKS = ("memory.max_usage_in_bytes", "memory.peak")
CHILD_TIMEOUT_S = 240


def tell(**facts: Any) -> None:
    print(json.dumps({"bench": "streamed", **facts}), flush=True)


def read_bytes(pid: int) -> int:
    """Returns: bytes that a process fetched from the disk. Source: proc_pid_io(5)."""
    rows = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(rows["read_bytes"])


def drop(path: Path) -> None:
    """Have the page cache forget a file that nobody has mapped."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def by_engine(path: Path, kind: str, n_tokens: int) -> dict[str, Any]:
    """As a node does it."""
    engine = EngineProcess(InferenceSettings(memory_mode="streamed" if kind == "streamed" else "resident"))
    model = SplitModel("0" * 64, path, (path,))
    began_s = time.perf_counter()
    await engine.start()
    try:
        stage = Stage(engine, model, (0, 1))
        await stage.load(OPTIONS)
        loading_s = time.perf_counter() - began_s
        (held,) = engine.shards
        route, pid = Route([stage]), engine.pid
        assert pid is not None
        (token,) = (await route.step(0, PROMPT)).message.tokens
        tokens = [token]
        before, began_s = read_bytes(pid), time.perf_counter()
        for position in range(len(PROMPT), len(PROMPT) + n_tokens):
            tokens += (await route.step(position, tokens[-1:])).message.tokens
        took_s, read = time.perf_counter() - began_s, read_bytes(pid) - before
        told = (await engine.report()).streamed
    finally:
        await engine.close()
    facts = told[0].weights.model_dump() if told else {}
    return facts | {
        "tokens": tokens,
        "tokens_per_s": n_tokens / took_s,
        "read_per_token": read / n_tokens,
        "loading_s": loading_s,
        "why": held.answer.why,
    }


def by_llama_cpp(path: Path, n_tokens: int, threads: int) -> dict[str, Any]:
    """As llama.cpp does it with a mapped file: weights are computed with where they lie."""
    began_s = time.perf_counter()
    with (
        LlamaModel(path, repack=False) as model,
        LlamaContext(model, n_ctx=OPTIONS.n_ctx, n_seq=1, n_batch=OPTIONS.n_batch, threads=threads) as context,
    ):
        loading_s = time.perf_counter() - began_s
        tokens: list[int] = []
        position, rows, before = 0, list(PROMPT), 0
        for _ in range(n_tokens + 1):
            context.decode(single_sequence_rows(position, len(rows), tokens=rows, outputs=[len(rows) - 1]))
            tokens.append(int(context.logits(len(rows) - 1).argmax()))
            position += len(rows)
            rows = tokens[-1:]
            if len(tokens) == 1:
                before, began_s = read_bytes(os.getpid()), time.perf_counter()
        took_s, read = time.perf_counter() - began_s, read_bytes(os.getpid()) - before
    return {
        "tokens": tokens,
        "tokens_per_s": n_tokens / took_s,
        "read_per_token": read / n_tokens,
        "loading_s": loading_s,
    }


def child(path: Path, kind: str, n_tokens: int) -> None:
    """One side, alone in this process."""
    if kind in ("streamed", "resident"):
        facts = asyncio.run(by_engine(path, kind, n_tokens))
    else:
        threads = 1 if kind == "mapped-1" else os.cpu_count() or 1
        facts = by_llama_cpp(path, n_tokens, threads)
    print(json.dumps(facts))


@contextlib.contextmanager
def group_for(kind: str, limit_bytes: int) -> Iterator[Path | None]:
    """The control group that a side runs in, None without one."""
    if kind in UNLIMITED:
        yield None
        return
    with memory_group(limit_bytes) as inner:
        yield inner


def run_side(path: Path, kind: str, limit_bytes: int, n_tokens: int) -> dict[str, Any]:
    """Run one side in a process of its own. Returns: what it told, with the group's peak."""
    drop(path)
    command = [
        sys.executable,
        "-m",
        "tests.bench.bench_streamed",
        str(path),
        "--child",
        kind,
        "--tokens",
        str(n_tokens),
    ]
    with group_for(kind, limit_bytes) as group:
        if group is not None:
            command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), *command]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=CHILD_TIMEOUT_S, check=True)
        facts: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        if group is not None:
            facts["peak_bytes"] = next(
                int((group.parent / name).read_text()) for name in PEAKS if (group.parent / name).exists()
            )
    return facts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--copy", type=Path)
    parser.add_argument("--only", default=",".join((*LIMITED, *UNLIMITED)))
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        child(options.model, options.child, options.tokens)
        return
    path = options.model
    if options.copy is not None:
        path = options.copy / f"bench-streamed-{os.getpid()}.gguf"
        shutil.copyfile(options.model, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        compare(path, options)
    except pytest.skip.Exception as reason:
        sys.exit(f"no control group can be made here: {reason}")
    finally:
        if options.copy is not None:
            path.unlink()


def compare(path: Path, options: argparse.Namespace) -> None:
    """Run all sides in turns, and tell their medians."""
    nbytes = path.stat().st_size
    limit = int(nbytes * options.share)
    kinds = options.only.split(",")
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for turn in range(options.rounds):
        for kind in kinds:
            try:
                facts = run_side(path, kind, limit, options.tokens)
            except subprocess.TimeoutExpired:
                tell(side=kind, turn=turn, load=round(os.getloadavg()[0], 1), gave_up_after_s=CHILD_TIMEOUT_S)
                continue
            found[kind].append(facts)
            shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in facts.items()}
            shown.pop("tokens")
            tell(side=kind, turn=turn, load=round(os.getloadavg()[0], 1), **shown)
    found = {kind: runs for kind, runs in found.items() if runs}
    rate = {kind: median(one["tokens_per_s"] for one in runs) for kind, runs in found.items()}
    read = {kind: median(one["read_per_token"] for one in runs) for kind, runs in found.items()}
    tell(model_bytes=nbytes, limit_bytes=limit, tokens_per_s={kind: round(one, 3) for kind, one in rate.items()})
    if "streamed" in found:
        peak = max(one["peak_bytes"] for one in found["streamed"])
        ratios: dict[str, Any] = {
            "read_over_weights_less_budget": round(
                median(
                    one["read_per_token"] / (one["weights_bytes"] - one["budget_bytes"]) for one in found["streamed"]
                ),
                3,
            ),
            "read_over_model_less_limit": round(read["streamed"] / (nbytes - limit), 3),
            "peak_over_limit": round(peak / limit, 3),
        }
        mapped = [rate[kind] for kind in LIMITED[1:] if kind in rate]
        if mapped:
            ratios["streamed_over_mapped"] = round(rate["streamed"] / max(mapped), 2)
        if "unrepacked" in found:
            ratios["same_answer"] = all(
                one["tokens"] == found["unrepacked"][0]["tokens"] for kind in LIMITED for one in found.get(kind, ())
            )
        tell(ratios=ratios)


if __name__ == "__main__":
    main()
