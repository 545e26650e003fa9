"""`shardnet coordinator`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardnet.cli.options import LogFormat, LogLevel, MetricsListen


def coordinator(
    context: typer.Context,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="TLS links of nodes. [default: 127.0.0.1:7700]")
    ] = None,
    api: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="HTTP API. [default: 127.0.0.1:8080]")] = None,
    enrol: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Takes in machines with a join token. [default: 127.0.0.1:7701]"),
    ] = None,
    dht_port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="PORT", help="UDP port where nodes meet. [default: 7702]")
    ] = None,
    models_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder whose models are served. [default: models_cache]")
    ] = None,
    stages: Annotated[
        int | None,
        typer.Option(
            min=0, max=256, metavar="N", help="Force pipelines of so many stages; 0: the quickest. [default: 0]"
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, max=256, metavar="N", help="Whole pipelines to keep loaded for each model. [default: 1]"),
    ] = None,
    copies: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, metavar="N", help="Nodes that shall have each shard's file, in memory or not. [default: 1]"
        ),
    ] = None,
    n_ctx: Annotated[
        int | None,
        typer.Option(
            min=8,
            metavar="N",
            help="Tokens of context of each sequence, at most what the model was trained for. [default: 4096]",
        ),
    ] = None,
    n_seq: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Requests side by side in each pipeline; others wait. [default: 4]"),
    ] = None,
    n_batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens in one batch at most. [default: 512]")
    ] = None,
    metrics_listen: MetricsListen = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Settings file; `shardnet config show coordinator --defaults` prints one with every key.",
        ),
    ] = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
) -> None:
    """Place shards, run requests, serve the OpenAI API.

    Nodes join it, each with the shards that it has or fetches. Ctrl-C stops it.

    Every setting can be said in FILE, by the environment (SHARDNET_LISTEN__API=...), and many by a flag; the last of these wins.
    `shardnet config show coordinator` shows them all.

    \b
    shardnet coordinator
    shardnet coordinator --listen 0.0.0.0:7700 --enrol 0.0.0.0:7701
    """
    from shardnet.cli.flags import COORDINATOR, names_of, settings_of
    from shardnet.configuration.daemons import begin
    from shardnet.coordinator.daemon import Coordinator
    from shardnet.coordinator.settings import CoordinatorSettings
    from shardnet.lifecycle import run_loop, serve
    from shardnet.swarm.home import Home

    flags, names = settings_of(context.params, COORDINATOR), names_of(COORDINATOR)
    settings = begin(CoordinatorSettings, file=config, flags=flags, flag_names=names)

    async def main() -> None:
        await serve(Coordinator(settings, Home()))

    run_loop(main())
