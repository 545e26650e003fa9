"""`shardnet demo`: split a model, run it over nodes that are processes of their own, ask it something, and compare with the unsplit model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from shardnet.errors import ParityError, ShardnetError
from shardnet.inference.llama.census import share_of_cores
from shardnet.inference.llama.devices import usable_threads
from shardnet.inference.splitting.plan import CutRequest, plan_split
from shardnet.library.answers import Answer
from shardnet.library.swarm_client import SwarmClient
from shardnet.local.processes import LocalSwarm
from shardnet.log import counted, human_bytes
from shardnet.preparing import Bar, prepare
from shardnet.settings import default_home

QUESTION = "Explain in three sentences why the sky is blue."
SHOWN_LOGS = ("[SHARD]", "[LOAD_SHARD]", "[DHT]", "[TORRENT]", "[NODE]", "[COORDINATOR]", "[INFERENCE]")


@dataclass(frozen=True)
class DemoResult:
    """What a demo run saw; printed as text or JSON."""

    model: str
    stages: int
    answer: str
    tokens: int
    tokens_per_s: float
    first_token_s: float
    bytes_per_hop: int
    plain_tokens_per_s: float
    tokens_equal: bool

    @property
    def ratio(self) -> float:
        """Returns: decode speed over nodes / plain llama.cpp, both measured in this run."""
        return self.tokens_per_s / self.plain_tokens_per_s if self.plain_tokens_per_s else 0.0


def run_demo(
    model: Path,
    folder: Path,
    *,
    n_nodes: int,
    question: str,
    max_tokens: int,
    out: TextIO,
    bar: Bar,
    keep: Callable[[DemoResult, str], None] | None = None,
) -> DemoResult:
    """Run the whole demo in `folder`; `bar` shows how far the split and its proof are.

    Args: keep: called with what was seen and the API's address while everything still runs.

    Raises: ParityError if the answer's tokens are not those of the unsplit model; ShardnetError if a process fails.
    """

    def say(text: str) -> None:
        out.write(text + "\n")
        out.flush()

    is_over = False

    def on_line(name: str, line: str) -> None:
        if not is_over and any(tag in line for tag in SHOWN_LOGS):
            say(f"  {name:<12} {line}")

    cache = folder / "models_cache"
    say(
        f"1. Splitting {model.name} ({human_bytes(model.stat().st_size)}) into {counted(n_nodes, 'shard')} and proving the split"
    )
    prepared = prepare(plan_split(model, CutRequest(n_nodes)), cache, default_home(), prove=True, bar=bar)
    manifest_folder, manifest = prepared.folder, prepared.manifest
    if manifest.certificate is None or not manifest.certificate.is_exact:
        raise ParityError(f"the shards in {manifest_folder} do not give the unsplit model's numbers")

    say(
        f"\n2. Starting a coordinator and {counted(n_nodes, 'node')} as processes of their own: "
        "node-0 is given the shards, the others fetch theirs from the swarm"
    )
    threads = share_of_cores(usable_threads(), n_nodes)
    with LocalSwarm(folder, on_line) as swarm:
        swarm.start_coordinator("--models-cache", str(cache), "--stages", str(n_nodes))
        _give_shards(manifest_folder, folder / "node-0" / "shards" / manifest_folder.name)
        for index in range(n_nodes):
            own = folder / f"node-{index}"
            swarm.start_node(f"node-{index}", own, "--shard", str(index), "--threads", str(threads))
        swarm.wait_ready(120)
        say(f"   API: {swarm.api}/v1")

        say(f"\n3. {question}\n")

        def on_text(text: str) -> None:
            out.write(text)
            out.flush()

        with SwarmClient(swarm.api, model=manifest.name) as client:
            messages = [{"role": "user", "content": question}]
            answer = client.chat(messages, on_text=on_text, max_tokens=max_tokens, temperature=0)
        is_over = True
        if keep is not None:
            say("\n\n4. Asking the unsplit model the same")
            result = _compare(model, manifest.name, n_nodes, threads, answer)
            keep(result, swarm.api)
            return result
        say("\n\n4. Stopping every process, and asking the unsplit model the same")
    return _compare(model, manifest.name, n_nodes, threads, answer)


def _give_shards(source: Path, target: Path) -> None:
    """Give a node all shards and the manifest, as a user who copies the folder would; hard links spare the disk, where there are any."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.*"):
        given = target / file.name
        if not file.is_file() or given.exists():
            continue
        try:
            os.link(file, given)
        except OSError:
            shutil.copyfile(file, given)


def _compare(model: Path, name: str, stages: int, threads: int, answer: Answer) -> DemoResult:
    """Run the same prompt through the unsplit model in this process."""
    from shardnet.bench.plain import PlainLlama

    if not answer.token_ids:
        raise ShardnetError("the answer holds no tokens")
    with PlainLlama(model, threads=threads) as plain:
        run = plain.generate(answer.prompt_token_ids, len(answer.token_ids))
    return DemoResult(
        model=name,
        stages=stages,
        answer=answer.text,
        tokens=len(answer.token_ids),
        tokens_per_s=answer.tokens_per_s,
        first_token_s=answer.first_token_s,
        bytes_per_hop=max((int(stage.get("bytes_on", 0)) for stage in answer.stages), default=0),
        plain_tokens_per_s=run.decode_tokens_per_s,
        tokens_equal=run.tokens == answer.token_ids,
    )
