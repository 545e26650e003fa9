"""`shardnet seed`, `shardnet fetch` and `shardnet torrent`: for people who only want to give or take weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardnet.cli import completing
from shardnet.cli.options import LogFormat, LogLevel

CoordinatorOption = Annotated[
    str | None,
    typer.Option("--coordinator", metavar="HOST:PORT", help="The coordinator. [default: the one last seen here]"),
]
BootstrapOption = Annotated[
    list[str] | None,
    typer.Option("--bootstrap", metavar="HOST:PORT", help="A member's DHT address. May be given several times."),
]
ListenOption = Annotated[
    str | None,
    typer.Option(
        "--listen",
        metavar="HOST:PORT",
        help="Where others reach this machine; port 0: any free one. [default: 127.0.0.1:0]",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Settings file of a node; `shardnet config show node --defaults` prints one."
    ),
]


def seed(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A models cache, or the folder of one model.")],
    coordinator: CoordinatorOption = None,
    bootstrap: BootstrapOption = None,
    listen: ListenOption = None,
    upload_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most bytes sent per second, as in 10MB. [default: no limit]")
    ] = None,
    is_open: Annotated[
        bool,
        typer.Option(
            "--open", help="Give them to anybody who has their ordinary torrents (shardnet torrent), no swarm."
        ),
    ] = False,
    config: ConfigOption = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
) -> None:
    """Give every shard in a folder to the swarm, until stopped. Runs nothing, and needs little memory.

    With --open there is no swarm: any BitTorrent v2 client can take the shards by the files that `shardnet torrent` writes. --listen is then
    the TCP address that clients connect to.
    """
    from shardnet.cli.flags import SEED, names_of, settings_of
    from shardnet.configuration.daemons import begin
    from shardnet.errors import UsageError
    from shardnet.lifecycle import run_loop, serve
    from shardnet.node.publishing import OpenSeed
    from shardnet.node.settings import NodeSettings
    from shardnet.node.sharing import SharingDaemon
    from shardnet.swarm.home import Home
    from shardnet.swarm.identity import claim_identity

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    if is_open and (coordinator or bootstrap):
        raise UsageError("--open seeds outside of any swarm: leave out --coordinator and --bootstrap")
    settings = begin(NodeSettings, file=config, flags=settings_of(context.params, SEED), flag_names=names_of(SEED))

    async def main() -> None:
        if is_open:
            await serve(OpenSeed(settings, Home().path / "open-torrents"))
            return
        with claim_identity(Home(), settings.node.name, "client", peers=settings.named_peers) as identity:
            await serve(SharingDaemon(settings, identity))

    run_loop(main())


def fetch(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Name or id of the model.", autocompletion=completing.models)],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Models cache to put it into. [default: models_cache]")
    ] = None,
    stay: Annotated[bool, typer.Option("--stay", help="Give it to others afterwards, until stopped.")] = False,
    coordinator: CoordinatorOption = None,
    bootstrap: BootstrapOption = None,
    listen: ListenOption = None,
    config: ConfigOption = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print what was fetched as JSON.")] = False,
) -> None:
    """Take a whole model from the swarm into a folder, verified.

    What is there already is not fetched again.
    """
    import json

    from shardnet.cli.flags import FETCH, names_of, settings_of
    from shardnet.cli.progress import byte_bar
    from shardnet.configuration.daemons import begin
    from shardnet.errors import ShardnetError
    from shardnet.lifecycle import run_loop, serve
    from shardnet.log import counted, human_bytes
    from shardnet.node.settings import NodeSettings
    from shardnet.node.sharing import SharingDaemon
    from shardnet.swarm.home import Home
    from shardnet.swarm.identity import claim_identity

    flags, names = settings_of(context.params, FETCH), names_of(FETCH)
    settings = begin(NodeSettings, file=config, flags=flags, flag_names=names, level=log_level or "warning")

    async def main() -> SharingDaemon:
        with claim_identity(Home(), settings.node.name, "client", peers=settings.named_peers) as identity:
            with byte_bar(f"Fetching {model[:40]}") as on_bytes:
                daemon = SharingDaemon(settings, identity, model=model, stays=stay, on_bytes=on_bytes)
                await serve(daemon)
            return daemon

    found = run_loop(main()).fetched
    if found is None:
        raise ShardnetError("stopped before everything was here; run it again, and it goes on from there")
    folder, manifest = found
    if json_output:
        facts = {
            "folder": str(folder),
            "model_id": manifest.model_id,
            "model": manifest.name,
            "bytes": manifest.total_bytes,
        }
        typer.echo(json.dumps(facts))
    else:
        typer.echo(
            f"{manifest.name}: {counted(manifest.n_shards, 'shard')}, {human_bytes(manifest.total_bytes)}, in {folder}"
        )


def torrent(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of one model: manifest and shards.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the .torrent files.")] = Path(),
    web_seed: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="HTTP folder that serves the shards too. May be given several times."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a .torrent file for each shard, to publish a model.

    They are ordinary ones (version 2), for any BitTorrent client.

    These are open: anybody who has one can take the shard from whoever seeds it, by `shardnet seed DIR --open` or with any client.
    Within a swarm none is needed: nodes hand theirs to each other.
    """
    import json

    from shardnet.errors import UsageError
    from shardnet.files import unwritable, write_whole
    from shardnet.inference.splitting.manifest_file import HashCache, check_shard, load_manifest
    from shardnet.torrent.metainfo import info_hash, make_torrent

    manifest = load_manifest(folder)
    hashes = HashCache(folder)
    written = []
    for shard in manifest.content.shards:
        path = folder / shard.file
        if not path.is_file():
            continue
        check_shard(path, manifest, shard.shard_id, hashes)
        seeds = [f"{url.rstrip('/')}/{shard.file}" for url in web_seed or ()]
        data = make_torrent(path, name=shard.file, root_cert_pem=None, web_seeds=seeds)
        file = out / f"{manifest.name.replace(':', '_')}-{shard.file}.torrent"
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(file, data)
        except OSError as error:
            raise unwritable(file, error) from error
        written.append({"shard_id": shard.shard_id, "file": str(file), "info_hash": info_hash(data)})
    if not written:
        raise UsageError(f"{folder} holds a manifest and none of its shards")
    if json_output:
        typer.echo(json.dumps(written))
    else:
        for one in written:
            typer.echo(f"shard {one['shard_id']}  {one['file']}  info-hash {one['info_hash']}")
