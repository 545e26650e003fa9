"""`shardnet demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shardnet.demo.run import DemoResult


def demo(
    model: Annotated[Path | None, typer.Option(help="A GGUF to use instead of SmolLM2-135M-Instruct.")] = None,
    nodes: Annotated[int, typer.Option(min=1, max=16, help="Nodes, one shard each.")] = 3,
    question: Annotated[str, typer.Option(help="What to ask.")] = "Explain in three sentences why the sky is blue.",
    max_tokens: Annotated[int, typer.Option(min=2, max=4096, help="Length of the answer at most.")] = 120,
    keep: Annotated[Path | None, typer.Option(help="Work in this folder and keep it.")] = None,
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Leave the swarm and its page up until Ctrl-C, to try it out.")
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON; the rest goes to stderr.")
    ] = False,
) -> None:
    """Show all of it on this machine with a real model.

    It is split, run over nodes, and compared with the unsplit model.

    Starts a coordinator and the nodes as processes of their own, in a swarm of their own; Ctrl-C at any moment leaves none behind.
    """
    import sys
    from contextlib import nullcontext

    from shardnet.cli.progress import byte_bar
    from shardnet.demo.run import run_demo
    from shardnet.errors import ParityError, UsageError
    from shardnet.lifecycle import leave_tidily_on_sigterm
    from shardnet.local.model import find_demo_model
    from shardnet.scratch import scratch_folder

    source = model or find_demo_model()
    if not source.is_file():
        raise UsageError(f"{source} is not a file")
    leave_tidily_on_sigterm()  # so that the processes are stopped on the way out
    out = sys.stderr if json_output else sys.stdout

    def stay(result: DemoResult, api: str) -> None:
        _show(result, as_json=json_output)
        out.write(
            f"\nEverything runs until Ctrl-C. Open {api} in a browser, or in another terminal:\n"
            f"   shardnet chat --api {api}\n   shardnet status --watch --api {api}\n"
        )
        out.flush()
        _until_interrupted()

    with nullcontext(keep) if keep is not None else scratch_folder("demo") as folder:
        folder.mkdir(parents=True, exist_ok=True)
        result = run_demo(
            source,
            folder,
            n_nodes=nodes,
            question=question,
            max_tokens=max_tokens,
            out=out,
            bar=byte_bar,
            keep=stay if keep_running else None,
        )
    if not keep_running:
        _show(result, as_json=json_output)
    if not result.tokens_equal:
        raise ParityError("the answer over nodes is not that of the unsplit model")


def _show(result: DemoResult, *, as_json: bool) -> None:
    import dataclasses
    import json

    from shardnet.log import counted

    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(result) | {"ratio": result.ratio}))
        return
    typer.echo(
        f"\n   tokens per second     {result.tokens_per_s:8.1f}   over {counted(result.stages, 'node')}"
        f"\n   plain llama.cpp       {result.plain_tokens_per_s:8.1f}   the unsplit model in one process, same run"
        f"\n   ratio                 {result.ratio:8.2f}"
        f"\n   time to first token   {result.first_token_s:8.2f} s"
        f"\n   bytes per hop         {result.bytes_per_hop:8d}   one hidden state of each token"
        f"\n   parity                {'identical' if result.tokens_equal else 'DIFFERENT'}: "
        f"{result.tokens} greedy tokens beside the unsplit model"
    )


def _until_interrupted() -> None:
    import threading

    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return  # the way it is meant to end
