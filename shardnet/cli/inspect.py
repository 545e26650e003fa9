"""`shardnet inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(inspect)


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A GGUF, a shard, a models cache folder, or the folder of a model's parts.")
    ],
    json_output: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Show what a model or a cache holds: layers, bytes, KV cache per token, and where the model may be cut.

    Reads headers only: quick for a model of any size, and nothing is hashed.
    """
    import json

    from shardnet.inference.splitting.inspection import inspect_path

    facts = inspect_path(path)
    if json_output:
        typer.echo(json.dumps(facts))
    elif facts["kind"] == "cache":
        _tell_cache(facts)
    else:
        _tell_file(facts)


def _line(title: str, text: str) -> None:
    typer.echo(f"  {title:<14} {text}")


def _tell_file(facts: dict[str, Any]) -> None:
    from shardnet.ids import short
    from shardnet.inference.splitting.inspection import cut_sentence, layer_runs
    from shardnet.log import human_bytes

    parts = f" (+ {len(facts['paths']) - 1} more parts)" if len(facts["paths"]) > 1 else ""
    typer.echo(f"{facts['paths'][0]}{parts}")
    if facts["kind"] == "shard":
        shard = facts["shard"]
        _line(
            "Shard",
            f"{shard['shard_id']} of {shard['n_shards']} of {shard['name']}, model {short(str(shard['model_id']))}: "
            f"layers [{shard['layer_first']}, {shard['layer_end']}) of {shard['n_layers']}",
        )
    _line(
        "Architecture",
        f"{facts['architecture']}, {facts['quantisation']}, {facts['n_params'] / 1e6:.1f} M weights, {human_bytes(facts['bytes'])}",
    )
    extra = f" (and {facts['n_extra_layers']} for multi-token prediction)" if facts["n_extra_layers"] else ""
    _line(
        "Layers",
        f"{facts['n_layers']}{extra}, {facts['n_embd']} wide, context {facts['n_ctx_train']}, vocabulary {facts['n_vocab']}",
    )
    _line(
        "Tensors",
        f"Mapped {facts['n_tensors']} tensors to {facts['n_layers']} layers ({facts['n_global_tensors']} belong to no layer)",
    )
    for first, end, nbytes, kv in layer_runs(facts):
        name = f"layer {first}" if end - first == 1 else f"layers {first}-{end - 1}"
        each = "" if end - first == 1 else " each"
        typer.echo(f"    {name:<14} {human_bytes(nbytes):>9}{each}, KV {human_bytes(kv)} a token")
    typer.echo(f"    {'no layer':<14} {human_bytes(facts['global_bytes']):>9}  embedding, head, norms")
    _line("Types", ", ".join(f"{name} {human_bytes(count)}" for name, count in facts["type_bytes"].items()))
    _line("KV cache", f"{human_bytes(facts['kv_bytes_per_token'])} a token (f16)")
    if facts["kind"] == "model":
        _line("Cut points", cut_sentence(facts))


def _tell_cache(facts: dict[str, Any]) -> None:
    from shardnet.ids import short
    from shardnet.log import human_bytes

    typer.echo(facts["path"])
    for model in facts["models"]:
        proved = "proved identical to the unsplit model" if model["is_proved"] else "not proved"
        signed = "signed" if model["is_signed"] else "not signed"
        typer.echo(
            f"  {model['name']}  {model['architecture']} {model['quantisation']}, {model['n_layers']} layers, "
            f"KV {human_bytes(model['kv_bytes_per_token'])} a token, model {short(model['model_id'])}; {proved}, {signed}"
        )
        for shard in model["shards"]:
            layers = f"[{shard['layer_first']}, {shard['layer_end']})"
            typer.echo(
                f"    shard {shard['shard_id']:<3} layers {layers:<12} {human_bytes(shard['bytes']):>9}  {shard['path'] or 'not here'}"
            )
    for shard in facts["loose_shards"]:
        layers = f"[{shard['layer_first']}, {shard['layer_end']})"
        typer.echo(
            f"  shard {shard['shard_id']} of model {short(shard['model_id'])}, layers {layers}, without a manifest: {shard['path']}"
        )
    for refused in facts["refused"]:
        typer.echo(f"  refused: {refused['reason']}")
    if not facts["models"] and not facts["loose_shards"]:
        typer.echo("  no shards: make some with `shardnet split MODEL.gguf`")
