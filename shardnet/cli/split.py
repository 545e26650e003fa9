"""`shardnet split`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shardnet.inference.proof.perplexity import Perplexity


class Even(StrEnum):
    """Values of `--balance`."""

    SPEED = "speed"
    MEMORY = "memory"


class Verify(StrEnum):
    """Values of `--verify`."""

    FULL = "full"
    QUICK = "quick"
    NONE = "none"


def split(
    model: Annotated[
        str,
        typer.Argument(
            help="A GGUF (of one that llama.cpp split by size any part, or their folder), the http(s) address of one, or a Hugging Face "
            "checkpoint: its folder, index or SafeTensors file."
        ),
    ],
    shards: Annotated[int | None, typer.Option(min=1, help="Number of shards (2 if nothing is said).")] = None,
    balance: Annotated[
        Even | None,
        typer.Option(
            help="What so many shards make even. speed (if nothing is said): what a step takes, so that no node waits for a slower one. memory: "
            "what is stored, where a machine is too small for the first shard, which is larger by the embedding table otherwise."
        ),
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
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Quantise the weights on the way, as llama.cpp would: q8_0, q6_k, q5_k_m, q4_k_m, q4_0, f16, ...",
        ),
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="An importance matrix of llama-imatrix (GGUF or .dat) to quantise with.")
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantise weights that are quantised already, at a further loss.")
    ] = False,
    perplexity: Annotated[
        Path | None,
        typer.Option(metavar="TEXTFILE", help="Measure perplexity on a text before and after quantising."),
    ] = None,
    verify: Annotated[
        Verify | None,
        typer.Option(
            help="How the shards are run against the unsplit model, to certify that nothing differs. full: as nodes run requests. quick: a few "
            "readings of the file, however little memory there is. Full if nothing is said, quick where full would read the file more than 20 times."
        ),
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="The same as --verify none.")] = False,
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
    """Cut a model into layer shards, and prove them.

    A GGUF or a checkpoint; the shards give the unsplit model's numbers.

    With --quantize their weights become another type on the way, tensor by tensor, in llama.cpp's own mixtures for the whole model.

    Writes OUT/shards/NAME-ID/shard-{i}.gguf, tokenizer.gguf and manifest.json. The same input gives the same bytes. Ctrl-C leaves nothing behind;
    from an address, or with --only, what was written stays, and the same command goes on with it. A model that was cut from an address is not
    proved: `shardnet verify FOLDER --source MODEL` does that later. Where a server wants a token, put it into $SHARDNET_HTTP_TOKEN.
    """
    import json

    from shardnet.cli.losses import loss_lines
    from shardnet.cli.progress import byte_bar, say, say_where
    from shardnet.errors import ParityError, UsageError
    from shardnet.inference.splitting.manifest_file import models_named
    from shardnet.library.cutting import Quantising, cut_model, cut_request
    from shardnet.lifecycle import leave_tidily_on_sigterm
    from shardnet.log import counted, human_bytes
    from shardnet.manifest import NoProof, by_claim, claim
    from shardnet.settings import default_home

    leave_tidily_on_sigterm()
    request = cut_request(
        shards,
        max_shard_bytes,
        None if cuts is None else _parse_cuts(cuts),
        None if balance is None else balance.value,
        spelled=lambda key: f"--{key.replace('_', '-')}",
    )
    if no_verify and verify not in (None, Verify.NONE):
        raise UsageError(f"--no-verify and --verify {verify} exclude each other: give one of them")
    say_where(model)
    measured = None if perplexity is None else _Perplexities(perplexity, model, out, quantize)
    done = cut_model(
        model,
        request,
        out,
        default_home(),
        quantising=Quantising(quantize, imatrix, allow_requantize),
        name=name,
        only=only or None,
        prove=not no_verify and verify is not Verify.NONE,
        method="quick" if verify is Verify.QUICK else "full" if verify is Verify.FULL else None,
        bar=byte_bar,
        on_plan=lambda proof: say(f"Proving the shards: {proof}"),
        on_whole=None if measured is None else measured.after_quantising,
    )
    prepared, traffic = done.prepared, done.traffic
    folder, manifest, was_there = prepared.folder, prepared.manifest, prepared.was_there
    certificate = manifest.certificate
    namesakes = models_named(out, manifest.name)
    meant = by_claim(namesakes)[0]
    if json_output:
        typer.echo(
            json.dumps(
                {"folder": str(folder), "was_there": was_there, "name_means": meant.model_id}
                | ({"asked_bytes": traffic.asked_bytes, "file_bytes": traffic.file_bytes} if traffic else {})
                | ({} if prepared.losses is None else {"quantised": prepared.losses})
                | ({} if measured is None else {"perplexity": measured.facts})
                | manifest.model_dump(mode="json")
            )
        )
    else:
        typer.echo(
            f"{manifest.name}  {manifest.content.quantisation}  {counted(manifest.content.n_layers, 'layer')}  model {manifest.model_id[:12]}"
        )
        for shard in manifest.content.shards:
            file = shard.file if shard.shard_id in manifest.cut_here else "(not cut here)"
            typer.echo(f"  shard {shard.shard_id:<3} layers {shard.layers!s:<12} {human_bytes(shard.bytes):>9}  {file}")
        if prepared.losses is not None:
            for line in loss_lines(prepared.losses, None if measured is None else measured.facts):
                typer.echo(f"  {line}")
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
                f"{certificate.decode_tokens} decoded tokens" + (f" ({certificate.why})" if certificate.why else "")
            )
        elif certificate is None:
            typer.echo(
                "  not proved (--verify none): run `shardnet verify FOLDER --source MODEL` before you rely on it"
            )
        if len(namesakes) > 1:
            which = "this one" if meant.model_id == manifest.model_id else f"model {meant.model_id[:12]}"
            typer.echo(
                f"  {len(namesakes)} models here are called {manifest.name}: the name means {which}, {claim(meant)}; "
                "ask for another by its id"
            )
    if done.fault:
        raise ParityError(f"the shards in {folder} do not give the unsplit model's numbers: {done.fault}")


class _Perplexities:
    """Perplexity on a text: of the model as it came, and as it was quantised."""

    def __init__(self, text: Path, model: str, out: Path, quantize: str | None) -> None:
        from shardnet.errors import UsageError
        from shardnet.inference.proof.perplexity import check_text

        if quantize is None:
            raise UsageError(
                "--perplexity compares a model before and after quantising: say to which type with --quantize"
            )
        check_text(text)
        self._text, self._model, self._out = text, model, out
        self.facts: dict[str, Any] = {}

    def after_quantising(self, whole: Path) -> None:
        """Measure both. Raises: UsageError if the text is too short; as `whole_file` and `measure_perplexity`."""
        from dataclasses import asdict

        from shardnet.cli.progress import byte_bar
        from shardnet.inference.opening import opened
        from shardnet.inference.splitting.manifest_file import SHARDS
        from shardnet.preparing import whole_model

        after = self._measured(whole, "after")
        with opened(self._model) as header, whole_model(header, self._out / SHARDS, byte_bar) as source:
            before = self._measured(source, "before")
        self.facts = {"before": asdict(before), "after": asdict(after)}

    def _measured(self, whole: Path, when: str) -> Perplexity:
        from shardnet.cli.progress import byte_bar
        from shardnet.inference.proof.perplexity import measure_perplexity

        with byte_bar(f"Perplexity {when} quantising") as progress:
            return measure_perplexity(whole, self._text, lambda share: progress(int(share * 1000), 1000))


def _parse_cuts(text: str) -> tuple[int, ...]:
    from shardnet.errors import UsageError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--cuts {text!r} is no list of layers: write 8,16,24") from None
