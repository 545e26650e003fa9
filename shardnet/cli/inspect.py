"""`shardnet inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shardnet.inference.engine.device_map import Space


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A GGUF or the http(s) address of one, a shard, a models cache, a checkpoint (SafeTensors file, index or folder), or a folder of a "
            "model's parts.",
        ),
    ],
    on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GPU=SIZE",
            help="Say how the layers would lie over GPUs with so much free memory, as in CUDA0=24GB; may be repeated. here: this machine's.",
        ),
    ] = None,
    device_map: Annotated[
        str, typer.Option("--map", metavar="MAP", help="For --on: auto, balanced, round-robin, or CPU=4,CUDA0=10.")
    ] = "auto",
    n_ctx: Annotated[
        int, typer.Option("--ctx", min=8, max=1 << 20, help="For --on: tokens of context of each sequence.")
    ] = 4096,
    n_seq: Annotated[int, typer.Option("--seq", min=1, max=256, help="For --on: sequences at the same time.")] = 4,
    json_output: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Show a model or a cache: layers, bytes, where it may be cut.

    Also KV cache per token, and which device could take what.

    Reads headers only: quick for a model of any size, and nothing is hashed.
    """
    import json

    from shardnet.cli.progress import say_where
    from shardnet.inference.checkpoints.files import is_checkpoint
    from shardnet.inference.opening import opened, refuse_no_model
    from shardnet.inference.remote.address import is_url
    from shardnet.inference.splitting.inspection import inspect_header, inspect_path, is_cache

    path = Path(model)
    if not is_url(model):
        refuse_no_model(model)
    if is_url(model):
        say_where(model)
        with opened(model) as header:
            facts = inspect_header(header)
    elif not is_cache(path) and is_checkpoint(path):
        from shardnet.inference.checkpoints.sharded import ShardedSafeTensors

        facts = ShardedSafeTensors(path).summary()
    else:
        facts = inspect_path(path)
    if on:
        facts["placing"] = placing_of(path, facts["kind"], on, device_map, n_ctx, n_seq)
    if json_output:
        typer.echo(json.dumps(facts))
    elif facts["kind"] == "cache":
        _tell_cache(facts)
    elif facts["kind"] == "checkpoint":
        _tell_checkpoint(facts)
    else:
        _tell_file(facts)
        for number, sentence in enumerate(facts["placing"]["sentences"] if on else ()):
            _line("" if number else "Devices", sentence)


def placing_of(path: Path, kind: str, on: list[str], device_map: str, n_ctx: int, n_seq: int) -> dict[str, Any]:
    """Returns: where a node's engine would put the layers of a GGUF, given these GPUs; for programs and, as `sentences`, for people.

    Raises: UsageError if it is no GGUF, or an option makes no sense.
    """
    from shardnet.errors import UsageError
    from shardnet.inference.engine.device_map import MODES, Wish, check_map, plan_devices
    from shardnet.inference.engine.shard_cost import cost_of_header
    from shardnet.inference.gguf.layout import read_model
    from shardnet.messages import ShardOptions

    if kind not in ("model", "shard"):
        raise UsageError("--on is about the layers of a GGUF: name a model's or a shard's file")
    if device_map not in MODES:
        try:
            check_map(device_map)
        except ValueError as error:
            raise UsageError(f"--map: {error}") from None
    cost, gpus = cost_of_header(read_model(path)), [space for text in on for space in _spaces(text)]
    plan = plan_devices(cost, ShardOptions(n_ctx=n_ctx, n_seq=n_seq), gpus, Wish(device_map))
    sentences = plan.sentences(cost)
    if not gpus:
        sentences.append("no GPU that this build of llama.cpp can use")
    return {
        "devices": list(plan.devices),
        "experts_in_ram": plan.experts_in_ram,
        "bytes_on": dict(plan.bytes_on),
        "sentences": sentences,
    }


def _spaces(text: str) -> list[Space]:
    from shardnet.errors import UsageError
    from shardnet.inference.engine.device_map import CPU, Space
    from shardnet.inference.splitting.cuts import parse_size

    if text == "here":
        from shardnet.inference.llama.devices import gpu_devices

        return [Space(gpu.name, gpu.free_bytes) for gpu in gpu_devices()]
    name, _, size = text.partition("=")
    if not name or name == CPU or not size:
        raise UsageError(f"--on {text!r} is neither here nor GPU=SIZE, as in CUDA0=24GB")
    return [Space(name, parse_size(size))]


def _line(title: str, text: str) -> None:
    typer.echo(f"  {title:<14} {text}")


def _tell_file(facts: dict[str, Any]) -> None:
    from shardnet.ids import short
    from shardnet.inference.splitting.inspection import cut_sentence
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
    _tell_tensors(facts)
    _line("KV cache", f"{human_bytes(facts['kv_bytes_per_token'])} a token (f16)")
    if facts["kind"] == "model":
        _line("Cut points", cut_sentence(facts))


def _tell_tensors(facts: dict[str, Any]) -> None:
    """Which layers have how many bytes, and of which types."""
    from shardnet.inference.splitting.inspection import layer_runs
    from shardnet.log import human_bytes

    _line(
        "Tensors",
        f"Mapped {facts['n_tensors']} tensors to {facts['n_layers']} layers ({facts['n_global_tensors']} belong to no layer)",
    )
    for first, end, nbytes, kv in layer_runs(facts):
        name = f"layer {first}" if end - first == 1 else f"layers {first}-{end - 1}"
        each = "" if end - first == 1 else " each"
        cache = "" if kv is None else f", KV {human_bytes(kv)} a token"
        typer.echo(f"    {name:<14} {human_bytes(nbytes):>9}{each}{cache}")
    typer.echo(f"    {'no layer':<14} {human_bytes(facts['global_bytes']):>9}  embedding, head, norms")
    _line("Types", ", ".join(f"{name} {human_bytes(count)}" for name, count in facts["type_bytes"].items()))


def _tell_checkpoint(facts: dict[str, Any]) -> None:
    from shardnet.log import human_bytes

    n_files = len(facts["paths"])
    typer.echo(facts["index"] or facts["paths"][0])
    config = facts["config"]
    size = (
        f"{facts['n_params'] / 1e6:.1f} M weights, {human_bytes(facts['bytes'])} in {n_files} file{'s' * (n_files > 1)}"
    )
    if config is None:
        _line("Checkpoint", f"{size}; no config.json beside it, so nothing can be held against it")
    else:
        quantised = f", quantised ({config['quantised_by']})" if config["quantised_by"] else ""
        _line("Checkpoint", f"{config['architecture']}{quantised}, {size}")
        _line(
            "Layers",
            f"{config['n_layers']}, {config['n_embd']} wide, context {config['n_ctx_train']}, vocabulary {config['n_vocab']}"
            + (f", {config['n_experts']} experts" if config["n_experts"] else ""),
        )
        _line("Rope", ", ".join(config["rope_types"]))
    _line("Modality", facts["modality"])
    if facts["has_embedding"]:
        _line("Head", "a tensor of its own" if facts["has_head"] else "the embedding (tied)")
    _tell_tensors(facts)
    if facts["ignored"]:
        _line("Ignored", f"{', '.join(facts['ignored'])}: not of this checkpoint")


def _tell_cache(facts: dict[str, Any]) -> None:
    from shardnet.ids import short
    from shardnet.log import counted, human_bytes

    typer.echo(facts["path"])
    for model in facts["models"]:
        proved = "proved identical to the unsplit model" if model["is_proved"] else "not proved"
        signed = "signed" if model["is_signed"] else "not signed"
        typer.echo(
            f"  {model['name']}  {model['architecture']} {model['quantisation']}, {counted(model['n_layers'], 'layer')}, "
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
