"""`shardnet node`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def node(
    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The coordinator; if nothing is said, the one last seen here, else 127.0.0.1:7700.",
        ),
    ] = None,
    bootstrap: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A member's DHT address: the coordinator is found there. May be given several times.",
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where other nodes reach this one; 127.0.0.1:0 if nothing is said."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="This node's name: node, node-2, ... if nothing is said.")] = None,
    models_cache: Annotated[
        Path | None, typer.Option(help="Folder of shards; models_cache if nothing is said.")
    ] = None,
    shard: Annotated[
        list[str] | None,
        typer.Option(metavar="[MODEL:]ID", help="Bind this node to a shard; may be given several times."),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Most memory for shards: 8GB, 6GiB; all that is free if not given."),
    ] = None,
    memory_mode: Annotated[
        str | None,
        typer.Option(
            metavar="resident|streamed|auto",
            help="Shards larger than memory: refused, or read from their file for each token; resident if nothing is said.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=0, max=1024, help="CPU threads for arithmetic; 0: this engine's share of the physical cores."),
    ] = None,
    n_gpu_layers: Annotated[
        str | None, typer.Option(metavar="auto|N", help="Layers of each shard on the GPU; auto: as many as fit.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (configs/node.toml shows every key).")] = None,
    log_format: Annotated[str | None, typer.Option(metavar="auto|pretty|json", help="How log lines look.")] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="debug|info|warning|error", help="Which log lines are written.")
    ] = None,
) -> None:
    """Run a node: keep shards in memory, and run them.

    It answers the coordinator's requests until it is stopped.

    Ctrl-C or SIGTERM lets running tasks finish; a second one ends the node at once.
    """
    from shardnet import log
    from shardnet.errors import UsageError
    from shardnet.inference.splitting.cuts import parse_size
    from shardnet.lifecycle import run_loop, serve
    from shardnet.node.daemon import NodeDaemon
    from shardnet.node.settings import NodeSettings
    from shardnet.settings import load_settings
    from shardnet.swarm.home import Home
    from shardnet.swarm.identity import claim_identity

    gpu_layers: int | str | None = n_gpu_layers
    if n_gpu_layers is not None and n_gpu_layers != "auto":
        try:
            gpu_layers = int(n_gpu_layers)
        except ValueError:
            raise UsageError(f"--n-gpu-layers {n_gpu_layers!r} is neither auto nor a number of layers") from None
    settings = load_settings(
        NodeSettings,
        file=config,
        flags={
            "node.coordinator": coordinator,
            "dht.bootstrap": tuple(bootstrap) if bootstrap else None,
            "node.listen": listen,
            "node.name": name,
            "node.models_cache": models_cache,
            "node.shards": tuple(shard) if shard else None,
            "inference.memory_limit_bytes": parse_size(memory_limit) if memory_limit else None,
            "inference.memory_mode": memory_mode,
            "inference.threads": threads,
            "inference.n_gpu_layers": gpu_layers,
            "log.format": log_format,
            "log.level": log_level,
        },
    )
    log.configure(level=settings.log.level, form=settings.log.format)

    async def main() -> None:
        with claim_identity(Home(), settings.node.name, "node") as identity:
            await serve(NodeDaemon(settings, identity))

    run_loop(main())
