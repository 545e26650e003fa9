"""`shardnet node`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardnet.cli import completing
from shardnet.cli.options import LogFormat, LogLevel, MetricsListen


def node(
    context: typer.Context,
    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The coordinator. [default: the one last seen here, else 127.0.0.1:7700]",
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
        typer.Option(
            metavar="HOST:PORT", help="Where other nodes reach this one; port 0: any free one. [default: 127.0.0.1:0]"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="This node's name. [default: the first free one of node, node-2, ...]"),
    ] = None,
    join_token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A join token: a home without a certificate joins with it at its first start."
        ),
    ] = None,
    models_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of shards. [default: models_cache]")
    ] = None,
    shard: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL:]ID",
            help="Bind this node to a shard; may be given several times.",
            autocompletion=completing.shards,
        ),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Most memory for shards: 8GB, 6GiB. [default: all that is free]"),
    ] = None,
    memory_mode: Annotated[
        str | None,
        typer.Option(
            metavar="resident|streamed|auto",
            help="Shards larger than memory: refused, or read from their file for each token. [default: resident]",
            autocompletion=completing.words("resident", "streamed", "auto"),
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1024,
            metavar="N",
            help="CPU threads for arithmetic; 0: as many as serve best, within this engine's share. [default: 0]",
        ),
    ] = None,
    n_gpu_layers: Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            help="Layers of each shard on the GPU; auto: as many as fit. [default: auto]",
            autocompletion=completing.words("auto"),
        ),
    ] = None,
    metrics_listen: MetricsListen = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Settings file; `shardnet config show node --defaults` prints one with every key."
        ),
    ] = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
) -> None:
    """Run a node: keep shards in memory, and run them.

    It answers the coordinator's requests until it is stopped.

    Ctrl-C or SIGTERM lets running tasks finish; a second one ends the node at once.

    Every setting can be said in FILE, by the environment (SHARDNET_NODE__LISTEN=...), and many by a flag; the last of these wins.
    `shardnet config show node` shows them all.

    \b
    shardnet node --shard 0
    shardnet node --coordinator THAT-MACHINE:7700 --listen THIS-MACHINE:7710
    """
    from shardnet.cli.flags import NODE, names_of, settings_of
    from shardnet.configuration.daemons import begin
    from shardnet.lifecycle import leave_tidily_on_sigterm, run_loop, serve
    from shardnet.node.daemon import NodeDaemon
    from shardnet.node.settings import NodeSettings
    from shardnet.swarm.home import Home
    from shardnet.swarm.identity import claim_identity
    from shardnet.swarm.joining import join_once

    settings = begin(NodeSettings, file=config, flags=settings_of(context.params, NODE), flag_names=names_of(NODE))

    async def main() -> None:
        if settings.node.join_token_file is not None:
            leave_tidily_on_sigterm()  # it may wait for a coordinator, and no daemon runs yet
            await join_once(settings.node.join_token_file, Home(), settings.node.name)
        with claim_identity(Home(), settings.node.name, "node", peers=settings.named_peers) as identity:
            await serve(NodeDaemon(settings, identity))

    run_loop(main())
