"""`shardnet plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardnet.cli.options import Api, AsJson

if TYPE_CHECKING:
    from shardnet.coordinator.placement.assign import NodeOffer
    from shardnet.coordinator.placement.law import LinkTime, Pace
    from shardnet.coordinator.placement.prospects import Prospect
    from shardnet.manifest import Manifest


PROMPT_ROWS = 256
"""Of the chunks that a machine's PROMPT_TOKENS_PER_S is about."""


def plan(
    model: Annotated[Path, typer.Argument(help="The folder of a split model, or its manifest.json.")],
    node: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:MEMORY:MS_PER_LAYER[:PROMPT_TOKENS_PER_S]",
            help="A machine to plan with, such as big:16GiB:2.5 or big:16GiB:2.5:300; big:16GiB:measured: as quick as this one, "
            "which is measured now. May be repeated. [default: the coordinator's nodes, as they tell]",
        ),
    ] = None,
    rtt_ms: Annotated[float, typer.Option(min=0, help="Round trip of links that were not measured.")] = 0.2,
    mbit_s: Annotated[float, typer.Option(min=0.001, help="Bandwidth of links that were not measured.")] = 800.0,
    n_ctx: Annotated[int, typer.Option("--ctx", min=8, max=1 << 20, help="Tokens of context of each sequence.")] = 4096,
    n_seq: Annotated[int, typer.Option("--seq", min=1, max=256, help="Sequences at the same time.")] = 4,
    streams: Annotated[
        int, typer.Option(min=0, max=4096, help="Streams at the same time; 0: as many as --seq allows each pipeline.")
    ] = 0,
    stream_mb_s: Annotated[
        float | None,
        typer.Option(
            "--stream",
            metavar="MB_PER_S",
            min=0.001,
            max=1e6,
            help="Every --node may read what does not fit from its disk for each token, at so many MB per second.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="For `measured`: CPU threads; 0: all cores.")] = 0,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt before the first token.")] = 128,
    as_json: AsJson = False,
    api: Api = None,
) -> None:
    """Predict speed and memory of each layout of a model.

    One node, splits, replicas.
    """
    import dataclasses
    import json

    from shardnet.coordinator.placement.assign import Policy
    from shardnet.coordinator.placement.law import LinkTime
    from shardnet.coordinator.placement.prospects import prospects
    from shardnet.coordinator.placement.settings import SequenceSettings
    from shardnet.coordinator.placement.streaming import Streaming
    from shardnet.errors import UsageError
    from shardnet.inference.splitting.manifest_file import load_manifest

    manifest = load_manifest(model)
    links: dict[tuple[str, str], LinkTime] = {}
    if node:
        pace = _measured_here(model, manifest, threads) if any(is_measured(text) for text in node) else None
        offers = [offer_of(text, manifest, pace) for text in node]
        if stream_mb_s is not None:
            offers = [dataclasses.replace(offer, streaming=Streaming(stream_mb_s * 1e6)) for offer in offers]
    elif stream_mb_s is not None:
        raise UsageError(
            "--stream is about machines named with --node: nodes of a coordinator tell it themselves", param="stream"
        )
    else:
        offers, links = _from_coordinator(manifest, api)
    policy = Policy(default_link=LinkTime(rtt_ms / 2e3, mbit_s * 1e6 / 8))
    options = SequenceSettings(n_ctx=n_ctx, n_seq=n_seq).to_options(manifest.content.n_ctx_train)
    found = prospects(manifest, offers, options, policy, links, prompt_tokens=prompt_tokens, streams=streams)
    limits = {offer.name: offer.limit for offer in offers if offer.limit}
    if as_json:
        facts: dict[str, Any] = {"model": manifest.name, "model_id": manifest.model_id, "prompt_tokens": prompt_tokens}
        facts["memory_limits"] = limits
        typer.echo(json.dumps(facts | dataclasses.asdict(found)))
        return
    from shardnet.log import counted

    typer.echo(
        f"{manifest.name}: {counted(manifest.content.n_layers, 'layer')} in {counted(manifest.n_shards, 'shard')}"
    )
    typer.echo(f"{'layout':<10} {'ms/token':>9} {'first token':>12} {'tokens/s, all':>15}  stages")
    for layout in found.layouts:
        typer.echo(_line(layout))
    for note in (*found.notes, *(f"{name} may have {limit}" for name, limit in limits.items())):
        typer.echo(f"  {note}")


def _line(layout: Prospect) -> str:
    from shardnet.log import human_bytes

    pipelines = " | ".join(
        " -> ".join(
            f"{stage.node} {stage.layers} {human_bytes(stage.memory_bytes)}{f' ({stage.streamed})' if stage.streamed else ''}"
            for stage in stages
        )
        for stages in layout.pipelines
    )
    return (
        f"{layout.kind:<10} {layout.seconds_per_token * 1e3:>9.2f} {layout.first_token_s * 1e3:>9.0f} ms {layout.tokens_per_s:>15.1f}"
        f"  {pipelines}"
    )


MEASURED = "measured"


def is_measured(text: str) -> bool:
    """Returns: True if a `--node` is to be as quick as this machine."""
    return text.split(":")[2:] == [MEASURED]


def _measured_here(model: Path, manifest: Manifest, threads: int) -> Pace:
    from shardnet.bench.local import measure_pace
    from shardnet.lifecycle import run_loop

    folder = model if model.is_dir() else model.parent
    return run_loop(measure_pace(folder, manifest, threads))


def offer_of(text: str, manifest: Manifest, pace: Pace | None = None) -> NodeOffer:
    """Returns: the machine that a `--node` describes, with every shard on its disk.

    Args:
        pace: of this machine, for `NAME:MEMORY:measured`.

    Raises: UsageError.
    """
    from shardnet.coordinator.placement.assign import NodeOffer
    from shardnet.coordinator.placement.law import step_bytes
    from shardnet.errors import ShardnetError, UsageError
    from shardnet.inference.splitting.cuts import parse_size

    row_costs: tuple[tuple[int, float], ...] = ()
    try:
        name, memory, *rest = text.split(":")
        free = parse_size(memory)
        if not name:
            raise ValueError(text)
        if is_measured(text) and pace is not None:
            speed, row_costs, handover_s = pace.bytes_per_s, pace.row_costs, pace.handover_s
        else:
            milliseconds, *prompts = (float(part) for part in rest)
            if not 0 < milliseconds < 1e6 or len(prompts) > 1 or any(not 0 < one < 1e9 for one in prompts):
                raise ValueError(text)
            step_s, handover_s = manifest.content.n_layers * milliseconds * 1e-3, None
            speed = step_bytes(manifest, 0, manifest.n_shards) / step_s
            row_costs = tuple((PROMPT_ROWS, max(1.0, PROMPT_ROWS / one / step_s)) for one in prompts)
    except (ValueError, ShardnetError):
        raise UsageError(
            f"--node {text!r} is not NAME:MEMORY:MS_PER_LAYER[:PROMPT_TOKENS_PER_S]: write it as in big:16GiB:2.5 or "
            "big:16GiB:measured, with numbers above 0",
            param="node",
        ) from None
    everything = frozenset(range(manifest.n_shards))
    return NodeOffer(name, name, free, speed, on_disk=everything, row_costs=row_costs, handover_s=handover_s)


def _from_coordinator(manifest: Manifest, api: str | None) -> tuple[list[NodeOffer], dict[tuple[str, str], LinkTime]]:
    from shardnet.coordinator.api.client import ApiClient, find_api

    with ApiClient(find_api(api)) as client:
        status = client.get("/status")
    return offers_in(status, manifest)


def offers_in(status: dict[str, Any], manifest: Manifest) -> tuple[list[NodeOffer], dict[tuple[str, str], LinkTime]]:
    """Returns: the nodes and links of `/status`, as if this model were on no node yet; any node could get the files."""
    from dataclasses import replace

    from shardnet.coordinator.placement.assign import NodeOffer
    from shardnet.coordinator.placement.law import LinkTime, step_bytes
    from shardnet.coordinator.placement.planning import pace_of, streaming_by
    from shardnet.messages import HeldShard

    def told(one: dict[str, Any]) -> tuple[int, HeldShard]:
        shard_id = one["shard_id"]
        rows_us = tuple((rows, float(microseconds)) for rows, microseconds in one.get("rows_us", ()))
        held = HeldShard(
            model_id=one["model_id"],
            shard_id=shard_id,
            loaded=one["loaded"],
            step_us=one.get("step_us"),
            rows_us=rows_us,
            streamed=one.get("streamed"),
        )
        return step_bytes(manifest, shard_id, shard_id + 1), held

    offers = []
    for node in status["nodes"]:
        own = sum(one["memory_bytes"] for one in node["held"] if one["model_id"] == manifest.model_id and one["loaded"])
        pace = pace_of(
            (told(one) for one in node["held"] if one["model_id"] == manifest.model_id), node.get("handover_us")
        )
        mode = node.get("memory_mode", "resident")
        streamed = [(None, told(one)[1]) for one in node["held"] if one["loaded"] and one.get("streamed")]
        if mode != "resident":  # as if none of it were loaded: what its disk gives is known all the same
            streaming = replace(streaming_by(streamed), yielding_bytes=0)
        offers.append(
            NodeOffer(
                node_id=node["node_id"],
                name=node["name"],
                free_bytes=node["memory_free_bytes"] + own,
                bytes_per_s=pace.bytes_per_s or node.get("bytes_per_s"),
                row_costs=pace.row_costs,
                handover_s=pace.handover_s,
                on_disk=frozenset(range(manifest.n_shards)),
                limit=node.get("memory_limit") or "",
                streaming=None if mode == "resident" else streaming,
            )
        )
    links = {
        (link["source"], link["target"]): LinkTime(link["one_way_s"], link["bytes_per_s"]) for link in status["links"]
    }
    return offers, links
