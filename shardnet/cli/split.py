"""`shardnet split`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def split(
    model: Annotated[
        str,
        typer.Argument(
            help="A GGUF (of one that llama.cpp split by size any part, or their folder), the http(s) address of one, or a Hugging Face "
            "checkpoint: its folder, index or SafeTensors file."
        ),
    ],
    shards: Annotated[
        int | None, typer.Option(min=1, help="Number of shards, balanced by bytes (2 if nothing is said).")
    ] = None,
    max_shard_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="As few shards as keep each below this size: 1.5GB, 800MiB.")
    ] = None,
    cuts: Annotated[
        str | None,
        typer.Option(
            metavar="8,16,24", help="Layers at which a new shard begins; `shardnet inspect` shows the legal ones."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The models cache to write to.")] = Path("models_cache"),
    name: Annotated[
        str | None, typer.Option(help="What people will call the model; the file's name if nothing is said.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Run the shards against the unsplit model and certify that nothing differs."
        ),
    ] = True,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Cut this shard alone (0, 0,2 or all; may be repeated), and read no more than it takes: several machines cut one model, each "
            "its own shards. All must be told the same cut and name.",
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Cut a GGUF or a checkpoint into layer shards and prove that they give the unsplit model's numbers.

    Writes OUT/shards/NAME-ID/shard-{i}.gguf, tokenizer.gguf and manifest.json. The same input gives the same bytes. Ctrl-C leaves nothing behind;
    from an address, or with --only, what was written stays, and the same command goes on with it. A model that was cut from an address is not
    proved: `shardnet verify FOLDER --source MODEL` does that later. Where a server wants a token, put it into $SHARDNET_HTTP_TOKEN.
    """
    import json

    from shardnet.cli.progress import byte_bar
    from shardnet.errors import ParityError, UsageError
    from shardnet.inference.opening import opened, traffic_of
    from shardnet.inference.splitting.cuts import parse_ids, parse_size
    from shardnet.inference.splitting.manifest_file import models_named
    from shardnet.inference.splitting.plan import CutRequest, plan_model
    from shardnet.log import human_bytes
    from shardnet.manifest import NoProof, by_claim, claim
    from shardnet.preparing import prepare
    from shardnet.settings import default_home

    given = [
        flag
        for flag, value in (("--shards", shards), ("--max-shard-bytes", max_shard_bytes), ("--cuts", cuts))
        if value
    ]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: give one of them")
    request = CutRequest(
        shards, parse_size(max_shard_bytes) if max_shard_bytes else None, _parse_cuts(cuts) if cuts else None
    )
    with opened(model) as header:
        plan = plan_model(header, request, name)
        wanted = parse_ids(only, len(plan.shards)) if only else None
        prepared = prepare(plan, out, default_home(), prove=verify, bar=byte_bar, only=wanted)
        traffic = traffic_of(header)
    folder, manifest, was_there = prepared.folder, prepared.manifest, prepared.was_there
    certificate = manifest.certificate
    namesakes = models_named(out, manifest.name)
    meant = by_claim(namesakes)[0]
    if json_output:
        typer.echo(
            json.dumps(
                {"folder": str(folder), "was_there": was_there, "name_means": meant.model_id}
                | ({"asked_bytes": traffic.asked_bytes, "file_bytes": traffic.file_bytes} if traffic else {})
                | manifest.model_dump(mode="json")
            )
        )
    else:
        typer.echo(
            f"{manifest.name}  {manifest.content.quantisation}  {manifest.content.n_layers} layers  model {manifest.model_id[:12]}"
        )
        for shard in manifest.content.shards:
            file = shard.file if shard.shard_id in manifest.cut_here else "(not cut here)"
            typer.echo(f"  shard {shard.shard_id:<3} layers {shard.layers!s:<12} {human_bytes(shard.bytes):>9}  {file}")
        typer.echo(f"  in {folder}" + (" (there already, nothing was written)" if was_there else ""))
        if traffic is not None:
            typer.echo(
                f"  asked for {human_bytes(traffic.asked_bytes)} of a model of {human_bytes(traffic.file_bytes)}: "
                f"{traffic.asked_bytes / traffic.file_bytes:.3f} of it"
            )
        if isinstance(certificate, NoProof):
            typer.echo(f"  not proved: {certificate.reason}; `shardnet verify {folder} --source MODEL` proves it later")
        elif certificate is not None and certificate.is_exact:
            typer.echo(
                f"  identical to the unsplit model: max |Δ logit| = 0 over {certificate.prompt_tokens} prompt and "
                f"{certificate.decode_tokens} decoded tokens"
            )
        elif certificate is None:
            typer.echo("  not proved (--no-verify): run `shardnet verify` before you rely on it")
        if len(namesakes) > 1:
            which = "this one" if meant.model_id == manifest.model_id else f"model {meant.model_id[:12]}"
            typer.echo(
                f"  {len(namesakes)} models here are called {manifest.name}: the name means {which}, {claim(meant)}; "
                "ask for another by its id"
            )
    if certificate is not None and not isinstance(certificate, NoProof) and not certificate.is_exact:
        from shardnet.inference.proof.verify import fault_of

        raise ParityError(
            f"the shards in {folder} do not give the unsplit model's numbers: {fault_of(manifest.content, certificate)}"
        )


def _parse_cuts(text: str) -> tuple[int, ...]:
    from shardnet.errors import UsageError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--cuts {text!r} is no list of layers: write 8,16,24") from None
