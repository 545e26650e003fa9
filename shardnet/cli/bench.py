"""`shardnet bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    model: Annotated[Path | None, typer.Option(help="A GGUF to use instead of SmolLM2-135M-Instruct.")] = None,
    stages: Annotated[str, typer.Option(metavar="1,2,3", help="Pipelines to measure, by number of nodes.")] = "1,2,3",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds; figures are medians over them.")] = 5,
    tokens: Annotated[int, typer.Option(min=8, max=900, help="Tokens of each answer.")] = 64,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of plain llama.cpp, and of each stage.")] = 1,
) -> None:
    """Measure decode speed over nodes beside plain llama.cpp in the same run; one JSON line for each pipeline.

    Method and rules are in docs/benchmarks.md. A speed is printed only for answers identical to plain llama.cpp's.
    """
    import json
    import tempfile

    from shardnet.bench.decode import decode_speed
    from shardnet.demo.model import find_demo_model
    from shardnet.errors import UsageError
    from shardnet.lifecycle import run_loop

    source = model or find_demo_model()
    try:
        counts = sorted({int(part) for part in stages.split(",")})
    except ValueError:
        raise UsageError(f"--stages {stages!r} is no list of numbers: write 1,2,3") from None
    if not counts or counts[0] < 1 or counts[-1] > 16:
        raise UsageError("--stages takes numbers from 1 to 16")
    with tempfile.TemporaryDirectory(prefix="shardnet-bench-", ignore_cleanup_errors=True) as scratch:
        run_loop(
            decode_speed(
                source,
                Path(scratch),
                stages=counts,
                rounds=rounds,
                n_tokens=tokens,
                threads=threads,
                on_row=lambda row: typer.echo(json.dumps(row)),
            )
        )
