"""`shardnet bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shardnet.bench.rows import Row


def bench(
    model: Annotated[Path | None, typer.Option(help="A GGUF to use instead of SmolLM2-135M-Instruct.")] = None,
    stages: Annotated[str, typer.Option(metavar="1,2,4", help="Pipelines to measure, by number of nodes.")] = "1,2",
    net: Annotated[
        str,
        typer.Option(
            metavar="NET,...",
            help="Networks: loopback, 1gbit, 100mbit, 20ms, 100ms (a time is a round trip), all imitated here.",
        ),
    ] = "loopback",
    streams: Annotated[
        str | None,
        typer.Option(metavar="1,8,16", help="Measure so many clients at once instead, beside plain llama.cpp batched."),
    ] = None,
    prefill: Annotated[
        int | None,
        typer.Option(min=16, max=100_000, metavar="N", help="Measure the first token of a prompt of N tokens instead."),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=8192,
            metavar="N",
            help="With --prefill: tokens that go through the stages at a time; if not given, by what they took.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds; figures are medians over them.")] = 5,
    tokens: Annotated[int, typer.Option(min=8, max=900, help="Tokens of each answer.")] = 64,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each stage.")] = 1,
    pin: Annotated[bool, typer.Option("--pin", help="Keep each stage on a core of its own (Linux).")] = False,
    cores: Annotated[
        int | None,
        typer.Option(min=1, help="Run everything on so many cores, plain llama.cpp too (Linux); else on all."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts.")] = 1,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print a JSON line for each result also on a terminal; elsewhere that is so anyway."
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg|png", help="Draw the results; needs the extra `plot`.")
    ] = None,
    rows_from: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="With --plot: draw these JSON lines, measure nothing.")
    ] = None,
) -> None:
    """Measure pipelines beside plain llama.cpp.

    Of real node processes, in the same run, and beside what the planner predicts.

    Without --streams and --prefill: the decode speed of one stream. Method and rules are in docs/benchmarks.md.
    """
    import json
    import sys

    from shardnet.bench.netem import parse_nets
    from shardnet.bench.rows import describe
    from shardnet.errors import UsageError

    if plot is not None:
        from shardnet.bench.plot import check_target

        check_target(plot)
    rows: list[Row] = []
    if rows_from is not None:
        if plot is None:
            raise UsageError("--rows names results to draw: give --plot too", param="rows")
        rows = _read_rows(rows_from)
    else:
        from shardnet.bench.concurrent import long_prompt, many_streams
        from shardnet.bench.decode import decode_speed
        from shardnet.bench.terms import Terms
        from shardnet.lifecycle import run_loop
        from shardnet.local.model import find_demo_model
        from shardnet.scratch import scratch_folder

        in_words = sys.stdout.isatty() and not as_json

        def on_row(row: Row) -> None:
            rows.append(row)
            typer.echo(describe(row) if in_words else json.dumps(row))

        if cores is not None:
            from shardnet.bench.world import use_cores

            use_cores(cores)
        counts = _numbers(stages, "stages", most=16)
        nets = parse_nets(net)
        together = _numbers(streams, "streams", most=64) if streams is not None else []
        if together and prefill is not None:
            raise UsageError("--streams and --prefill are two benchmarks: run one after the other")
        with scratch_folder("bench") as scratch:
            source = model or find_demo_model()
            terms = Terms(source, scratch, nets, counts, rounds, threads, seed, pin, on_row)
            if together:
                run_loop(many_streams(terms, together, tokens))
            elif prefill is not None:
                run_loop(long_prompt(terms, prefill, chunk))
            else:
                run_loop(decode_speed(terms, tokens))
    if plot is not None:
        from shardnet.bench.plot import draw

        draw(rows, plot)


def _numbers(text: str, name: str, *, most: int) -> list[int]:
    from shardnet.errors import UsageError

    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"--{name} {text!r} is no list of numbers: write 1,2,4") from None
    if not numbers or numbers[0] < 1 or numbers[-1] > most:
        raise UsageError(f"--{name} takes numbers from 1 to {most}")
    return numbers


def _read_rows(path: Path) -> list[Row]:
    import json

    from shardnet.errors import UsageError

    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON lines: {error}", param="rows") from None
    if not all(isinstance(row, dict) and "bench" in row and "stages" in row for row in rows):
        raise UsageError(f"{path} holds lines that are no results of shardnet bench", param="rows")
    return rows
