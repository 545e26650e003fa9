"""`shardnet verify`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shardnet.manifest import Manifest


class Method(StrEnum):
    """Values of `--method`."""

    FULL = "full"
    QUICK = "quick"


def verify(
    folder: Annotated[Path, typer.Argument(help="The folder of a split model, or its manifest.json.")],
    source: Annotated[
        str | None,
        typer.Option(
            help="The unsplit GGUF or checkpoint, or its http(s) address: run the shards against it and certify what comes of it."
        ),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(
            help="How the shards are run against the unsplit model. full: as nodes run requests. quick: a few readings of the file, however "
            "little memory there is. Full if nothing is said, quick where full would read the file more than 20 times."
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="What SOURCE was quantised to when it was split; likewise the next two."),
    ] = None,
    imatrix: Annotated[Path | None, typer.Option(help="The importance matrix that it was quantised with.")] = None,
    allow_requantize: Annotated[bool, typer.Option("--allow-requantize", help="SOURCE was quantised already.")] = False,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, max=2000, help="Greedy tokens after each prompt; 32 if nothing is said, fewer for a quick proof."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads to compute with; 0 for all.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check shards: hashes, and against the unsplit model.

    Given that one, the shards must give its very numbers.

    Exit code 0: identical, or nothing contradicts the stored certificate. 3: damaged, of another model, or a family that cannot be cut.
    4: the numbers differ.
    """
    import json

    from shardnet.cli.progress import byte_bar, say
    from shardnet.errors import ParityError
    from shardnet.library.models import examine
    from shardnet.lifecycle import leave_tidily_on_sigterm
    from shardnet.manifest import NoProof

    leave_tidily_on_sigterm()
    found = examine(
        folder,
        source,
        quantize=quantize,
        imatrix=imatrix,
        allow_requantize=allow_requantize,
        method=None if method is None else method.value,
        on_plan=lambda proof: say(f"Proving the shards: {proof}"),
        decode_tokens=tokens,
        threads=threads,
        bar=byte_bar,
    )
    manifest, certificate, report = found.manifest, found.certificate, found.report
    if json_output:
        facts = {
            "model_id": manifest.model_id,
            "name": manifest.name,
            "hashes_match": True,
            "parity_run": source is not None,
            "certificate": certificate.model_dump(mode="json") if certificate else None,
            "exact": certificate.is_exact if certificate else None,
            "fault": found.fault,
            "saved": found.is_saved,
        }
        typer.echo(json.dumps(facts))
    else:
        typer.echo(
            f"{manifest.name}  model {manifest.model_id[:12]}: {shards_here(manifest)} and the tokenizer match their hashes"
        )
        if report is None:
            why = f" ({certificate.reason})" if isinstance(certificate, NoProof) else ""
            typer.echo(f"  parity was never proved{why}: give the unsplit model with --source")
        else:
            ran = "parity" if source is not None else "parity was not run again; the stored certificate says"
            typer.echo(
                f"  {ran}: {'identical' if report.is_exact else 'DIFFERENT'}, max |Δ logit| = {report.max_abs_logit_diff:g}, greedy "
                f"tokens {'equal' if report.tokens_equal else 'DIFFERENT'} ({report.prompt_tokens} prompt and "
                f"{report.decode_tokens} decoded tokens, llama-cpp-python {report.llama_cpp}, {report.cpu})"
            )
            if report.why:
                typer.echo(f"    {report.why}")
            for boundary in report.boundaries:
                typer.echo(
                    f"    shard {boundary.shard_id:<3} after layer {boundary.layer_end - 1:<4} max |Δ| = {boundary.max_abs_diff:g}"
                )
        if found.why_not_saved:
            typer.echo(f"  {found.why_not_saved}")
    if found.fault:
        raise ParityError(found.fault)


def shards_here(manifest: Manifest) -> str:
    """Returns: how many shards could be looked at."""
    from shardnet.log import counted

    count = len(manifest.cut_here)
    return (
        counted(count, "shard")
        if count == manifest.n_shards
        else f"{count} of {counted(manifest.n_shards, 'shard')} (the others were cut elsewhere)"
    )
