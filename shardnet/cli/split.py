"""`shardnet split`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shardnet.inference.proof.perplexity import Perplexity


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("split")(split)


def split(
    model: Annotated[
        Path,
        typer.Argument(
            help="A GGUF (of one that llama.cpp split by size any part, or their folder), or a Hugging Face checkpoint: its folder, "
            "index or SafeTensors file."
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
        bool,
        typer.Option(
            "--verify/--no-verify", help="Run the shards against the unsplit model and certify that nothing differs."
        ),
    ] = True,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Cut a GGUF or a checkpoint into layer shards and prove that they give the unsplit model's numbers.

    With --quantize their weights become another type on the way, tensor by tensor, in llama.cpp's own mixtures for the whole model.

    Writes OUT/shards/NAME-ID/shard-{i}.gguf, tokenizer.gguf and manifest.json. The same input gives the same bytes. Ctrl-C leaves nothing behind.
    """
    import json

    from shardnet.cli.losses import loss_lines
    from shardnet.cli.progress import byte_bar
    from shardnet.errors import ParityError, UsageError
    from shardnet.inference.opening import open_model
    from shardnet.inference.quantising.model import quantised_name
    from shardnet.inference.splitting.cuts import parse_size
    from shardnet.inference.splitting.manifest_file import models_named
    from shardnet.inference.splitting.plan import CutRequest, model_name, plan_model
    from shardnet.log import human_bytes
    from shardnet.manifest import by_claim, claim
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
    header = open_model(model, quantize=quantize, imatrix=imatrix, allow_requantize=allow_requantize)
    if quantize is not None and name is None:
        name = quantised_name(model_name(header, None), quantize)
    measured = None if perplexity is None else _Perplexities(perplexity, model, out, quantize)
    prepared = prepare(
        plan_model(header, request, name),
        out,
        default_home(),
        prove=verify,
        bar=byte_bar,
        on_whole=None if measured is None else measured.after_quantising,
    )
    folder, manifest, was_there = prepared.folder, prepared.manifest, prepared.was_there
    certificate = manifest.certificate
    namesakes = models_named(out, manifest.name)
    meant = by_claim(namesakes)[0]
    if json_output:
        typer.echo(
            json.dumps(
                {"folder": str(folder), "was_there": was_there, "name_means": meant.model_id}
                | ({} if prepared.losses is None else {"quantised": prepared.losses})
                | ({} if measured is None else {"perplexity": measured.facts})
                | manifest.model_dump(mode="json")
            )
        )
    else:
        typer.echo(
            f"{manifest.name}  {manifest.content.quantisation}  {manifest.content.n_layers} layers  model {manifest.model_id[:12]}"
        )
        for shard in manifest.content.shards:
            typer.echo(
                f"  shard {shard.shard_id:<3} layers {shard.layers!s:<12} {human_bytes(shard.bytes):>9}  {shard.file}"
            )
        if prepared.losses is not None:
            for line in loss_lines(prepared.losses, None if measured is None else measured.facts):
                typer.echo(f"  {line}")
        typer.echo(f"  in {folder}" + (" (there already, nothing was written)" if was_there else ""))
        if certificate is not None and certificate.is_exact:
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
    if certificate is not None and not certificate.is_exact:
        from shardnet.inference.proof.verify import fault_of

        raise ParityError(
            f"the shards in {folder} do not give the unsplit model's numbers: {fault_of(manifest.content, certificate)}"
        )


class _Perplexities:
    """Perplexity on a text: of the model as it came, and as it was quantised."""

    def __init__(self, text: Path, model: Path, out: Path, quantize: str | None) -> None:
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
        from shardnet.inference.opening import open_model
        from shardnet.inference.splitting.manifest_file import SHARDS
        from shardnet.preparing import whole_model

        after = self._measured(whole, "after")
        with whole_model(open_model(self._model), self._out / SHARDS, byte_bar) as source:
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
