"""`shardnet verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shardnet.manifest import Manifest


def verify(
    folder: Annotated[Path, typer.Argument(help="The folder of a split model, or its manifest.json.")],
    source: Annotated[
        str | None,
        typer.Option(
            help="The unsplit GGUF or checkpoint, or its http(s) address: run the shards against it and certify what comes of it."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, max=2000, help="Greedy tokens after each prompt.")] = 32,
    threads: Annotated[int, typer.Option(min=0, help="Threads to compute with; 0 for all.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check the shards' hashes and, given the unsplit model, that the shards give its very numbers.

    Exit code 0: identical, or nothing contradicts the stored certificate. 3: damaged, of another model, or a family that cannot be cut.
    4: the numbers differ.
    """
    import json
    from contextlib import ExitStack

    from shardnet.cli.progress import byte_bar
    from shardnet.errors import ParityError, RefusedError
    from shardnet.inference.opening import opened
    from shardnet.inference.proof.verify import check_source, damaged_files, fault_of, verify_split
    from shardnet.inference.splitting.manifest_file import load_manifest, save_manifest
    from shardnet.manifest import NoProof, ParityCertificate
    from shardnet.preparing import whole_model
    from shardnet.settings import default_home
    from shardnet.swarm.signing import sign_if_owner

    manifest = load_manifest(folder)
    folder = folder if folder.is_dir() else folder.parent
    with byte_bar("Hashing") as progress:
        damaged = damaged_files(folder, manifest, progress)
    if damaged:
        raise RefusedError("; ".join(damaged), damaged=len(damaged))
    certificate, saved = manifest.certificate, False
    if source is not None:
        with ExitStack() as stack:
            header = stack.enter_context(opened(source))
            check_source(manifest, header)
            unsplit = stack.enter_context(whole_model(header, folder.resolve().parent, byte_bar))
            progress = stack.enter_context(byte_bar("Proving the shards"))
            certificate = verify_split(
                folder,
                unsplit,
                on_progress=lambda share: progress(int(share * 1000), 1000),
                decode_tokens=tokens,
                threads=threads,
                save=False,
            )
        proved = sign_if_owner(
            manifest.model_copy(update={"certificate": certificate, "signature": None}), default_home()
        )
        saved = manifest.signature is None or proved.signature is not None
        if saved:
            save_manifest(folder, proved)
    report = certificate if isinstance(certificate, ParityCertificate) else None
    fault = fault_of(manifest.content, report) if report is not None else ""
    if json_output:
        facts = {
            "model_id": manifest.model_id,
            "name": manifest.name,
            "hashes_match": True,
            "parity_run": source is not None,
            "certificate": certificate.model_dump(mode="json") if certificate else None,
            "exact": certificate.is_exact if certificate else None,
            "fault": fault,
            "saved": saved,
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
            for boundary in report.boundaries:
                typer.echo(
                    f"    shard {boundary.shard_id:<3} after layer {boundary.layer_end - 1:<4} max |Δ| = {boundary.max_abs_diff:g}"
                )
        if source is not None and not saved:
            typer.echo("  the manifest is signed by its owner and was left as it is")
    if fault:
        raise ParityError(fault)


def shards_here(manifest: Manifest) -> str:
    """Returns: how many shards could be looked at."""
    count = len(manifest.cut_here)
    return (
        f"{count} shards"
        if count == manifest.n_shards
        else f"{count} of {manifest.n_shards} shards (the others were cut elsewhere)"
    )
