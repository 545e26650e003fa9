"""What a setting comes to where its value leaves that to the machine: threads, memory, addresses, folders. For people who ask.

Reads by the functions that the daemons use. Refuses to load llama.cpp, so that what depends on GPUs stays unsaid.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.errors import ShardnetError
from shardnet.inference.llama.devices import main_memory, processors
from shardnet.log import human_bytes
from shardnet.node.links.finding import DEFAULT_COORDINATOR
from shardnet.node.settings import NodeSettings
from shardnet.swarm.addresses import is_wildcard, parse_host_port, read_coordinator_addresses
from shardnet.swarm.home import Home


def comes_to(settings: NodeSettings | CoordinatorSettings) -> dict[str, str]:
    """Returns: `section.key` -> what its value comes to here and now, for each key whose value does not say it."""
    found = _of_node(settings) if isinstance(settings, NodeSettings) else _of_coordinator(settings)
    log_format = "pretty" if sys.stderr.isatty() else "json"
    return dict(found) | ({"log.format": log_format} if settings.log.format == "auto" else {})


def _of_node(settings: NodeSettings) -> Iterator[tuple[str, str]]:
    inference, torrent = settings.inference, settings.torrent
    if settings.node.coordinator is None:
        yield "node.coordinator", _last_seen(settings)
    yield from _folder("node.models_cache", settings.node.models_cache)
    if not inference.threads:
        cores = processors()
        limit = f", by {cores.limit}" if cores.limit else ""
        yield (
            "inference.threads",
            f"{cores.threads} at most for one engine alone{limit}, as many as serve best; engines beside one another share them",
        )
    room = main_memory()
    limit = f" within {room.bound}" if room.bound else ""
    if not inference.memory_limit_bytes:
        yield "inference.memory_limit_bytes", f"{human_bytes(room.free_bytes)}, now free{limit}"
    host = parse_host_port(settings.node.listen)[0]
    yield from _host("torrent.listen_host", torrent.listen_host, host)
    yield from _host("dht.listen_host", settings.dht.listen_host, host)
    if not torrent.advertise_port and torrent.listen_port:
        yield "torrent.advertise_port", str(torrent.listen_port)
    yield from _renewals(settings)


def _of_coordinator(settings: CoordinatorSettings) -> Iterator[tuple[str, str]]:
    yield from _folder("models.cache", settings.models.cache)
    yield from _host("dht.listen_host", settings.dht.listen_host, parse_host_port(settings.listen.nodes)[0])
    yield from _renewals(settings)


def _last_seen(settings: NodeSettings) -> str:
    try:
        seen = read_coordinator_addresses(Home()).nodes
    except ShardnetError:
        seen = None
    if seen is not None:
        return f"{seen}, last seen on this machine"
    return "whom the DHT names" if settings.dht.bootstrap else str(DEFAULT_COORDINATOR)


def _folder(key: str, folder: Path) -> Iterator[tuple[str, str]]:
    if not folder.is_absolute():
        yield key, str(folder.absolute())


def _host(key: str, host: str, listening: str) -> Iterator[tuple[str, str]]:
    if not host:
        yield key, f"{listening}{', every address of this machine' if is_wildcard(listening) else ''}"


def _renewals(settings: NodeSettings | CoordinatorSettings) -> Iterator[tuple[str, str]]:
    if settings.dht.announce_interval_s is None:
        yield "dht.announce_interval_s", f"{settings.dht.renew_every_s:g}"
