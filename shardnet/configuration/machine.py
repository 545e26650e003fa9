"""Settings that are legal and cannot work: not on this machine, or not together. Each is a sentence that says what to do.

Looks at addresses, folders, memory and names. Refuses to open a port and to write a file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.errors import ShardnetError
from shardnet.hosts import addresses_of, is_ours
from shardnet.inference.llama.devices import main_memory, processors
from shardnet.log import human_bytes
from shardnet.messages import Address
from shardnet.node.settings import NodeSettings
from shardnet.swarm.addresses import is_loopback, is_wildcard, parse_address, parse_host_port
from shardnet.swarm.api_keys import list_keys
from shardnet.swarm.home import Home
from shardnet.swarm.whereabouts import Place, reach_of

PRIVILEGED = 1024
MADE_WHEN_NEEDED = Path("models_cache")
"""The default: that it is not there yet is no news."""
Warned = tuple[str, str]
"""`section.key`, and the sentence."""


def warnings_for(settings: NodeSettings | CoordinatorSettings) -> list[Warned]:
    """Returns: what cannot work, or hardly. Names are looked up, which may take seconds where a name server does not answer."""
    found = _for_node(settings) if isinstance(settings, NodeSettings) else _for_coordinator(settings)
    return [*_home(), *found]


def _for_node(settings: NodeSettings) -> Iterator[Warned]:
    node, inference, torrent, dht = settings.node, settings.inference, settings.torrent, settings.dht
    yield from _listening("node.listen", node.listen)
    yield from _listening("torrent.listen_host", torrent.listen_host, torrent.listen_port)
    yield from _listening("dht.listen_host", dht.listen_host, dht.listen_port)
    yield from _reached("node.advertise", node.listen, node.advertise, node.coordinator)
    yield from _resolves("node.coordinator", node.coordinator)
    for one in dht.bootstrap:
        yield from _resolves("dht.bootstrap", one)
    yield from _folder("node.models_cache", node.models_cache)
    cores, room = processors(), main_memory()
    if inference.threads > cores.threads:
        yield (
            "inference.threads",
            f"is {inference.threads}, and this process can keep {cores.threads} busy: more of them wait for one another, and are slower",
        )
    if inference.memory_limit_bytes > room.total_bytes:
        limit = f" within {room.bound}" if room.bound else ""
        yield (
            "inference.memory_limit_bytes",
            f"is {human_bytes(inference.memory_limit_bytes)}, and this process can have {human_bytes(room.total_bytes)} at most{limit}",
        )
    if node.preload_n_batch > node.preload_n_ctx:
        yield "node.preload_n_batch", f"is above node.preload_n_ctx, {node.preload_n_ctx}: no batch has so many tokens"
    yield from _disk(settings)
    if not torrent.enabled and dht.enabled and dht.bootstrap:
        yield "torrent.enabled", "is false: shards that are not in this node's folder come from nowhere"
    if not dht.enabled and dht.bootstrap:
        yield "dht.bootstrap", "is not asked while dht.enabled is false"
    if not dht.enabled and node.coordinator is None:
        yield (
            "dht.enabled",
            "is false and node.coordinator is not set: only a coordinator on this machine, or the one last seen, is found",
        )


def _disk(settings: NodeSettings) -> Iterator[Warned]:
    torrent = settings.torrent
    try:
        disk = shutil.disk_usage(_nearest(settings.node.models_cache))
    except OSError:
        return
    if torrent.enabled and torrent.keep_free_bytes >= disk.free:
        yield (
            "torrent.keep_free_bytes",
            f"is {human_bytes(torrent.keep_free_bytes)}, and {human_bytes(disk.free)} are free where node.models_cache is: nothing can be fetched",
        )
    if torrent.disk_budget_bytes > disk.total:
        yield "torrent.disk_budget_bytes", f"is above the disk's {human_bytes(disk.total)}: it bounds nothing"


def _for_coordinator(settings: CoordinatorSettings) -> Iterator[Warned]:
    listen, sequences = settings.listen, settings.sequences
    for key, text in (("listen.nodes", listen.nodes), ("listen.api", listen.api), ("listen.enrol", listen.enrol)):
        if text:
            yield from _listening(key, text)
    yield from _same_port(settings)
    yield from _listening("dht.listen_host", settings.dht.listen_host, settings.dht.listen_port)
    yield from _reached("listen.advertise", listen.nodes, listen.advertise, None)
    for one in settings.dht.bootstrap:
        yield from _resolves("dht.bootstrap", one)
    yield from _folder("models.cache", settings.models.cache)
    yield from _access(settings)
    if sequences.prompt_chunk > sequences.n_batch:
        yield "sequences.prompt_chunk", f"is above sequences.n_batch, {sequences.n_batch}, which bounds it"
    if sequences.n_batch > sequences.n_ctx:
        yield "sequences.n_batch", f"is above sequences.n_ctx, {sequences.n_ctx}: no batch has so many tokens"
    if settings.prefixes.enabled and settings.prefixes.min_tokens >= sequences.n_ctx:
        yield "prefixes.min_tokens", f"is no less than sequences.n_ctx, {sequences.n_ctx}: no prompt begins so long"


def _access(settings: CoordinatorSettings) -> Iterator[Warned]:
    """Who reaches the API, and who is answered."""
    api, host = settings.api, parse_host_port(settings.listen.api)[0]
    if is_loopback(host):
        return
    try:
        has_keys = bool(api.key) or list_keys(Home()) is not None
    except ShardnetError:
        has_keys = bool(api.key)
    if not has_keys:
        yield "listen.api", "is open to everybody who reaches this machine: make a key with `shardnet key add NAME`"
    if all(is_loopback(name) for name in api.allowed_hosts):
        yield (
            "api.allowed_hosts",
            f"has only this machine's own names, and listen.api is {settings.listen.api}: clients elsewhere are answered 403 "
            "unless the name or address by which they call stands there too",
        )


def _same_port(settings: CoordinatorSettings) -> Iterator[Warned]:
    seen: dict[tuple[str, int], str] = {}
    for key in ("nodes", "api", "enrol"):
        text = getattr(settings.listen, key)
        if not text or not (address := parse_host_port(text))[1]:
            continue
        if address in seen:
            yield f"listen.{key}", f"is the same as listen.{seen[address]}, {text}: only one of them can have that port"
        seen.setdefault(address, key)


def _listening(key: str, text: str, port: int | None = None) -> Iterator[Warned]:
    """What keeps a daemon from listening. `text`: HOST:PORT, or an IP address beside `port`; "": somewhere else says where."""
    if not text:
        return
    host, port = parse_host_port(text) if port is None else (text, port)
    found = ["127.0.0.1"] if host == "localhost" else addresses_of(host)
    if not found:
        yield key, f"names {host}, which this machine does not know: nobody can listen there"
    elif not any(is_wildcard(one) or is_ours((one,)) for one in found):
        yield (
            key,
            f"names {host}, which is no address of this machine: write one that is, or 0.0.0.0 for all of them",
        )
    if 0 < port < _first_free_port() and os.geteuid() != 0:
        yield key, f"has port {port}, and only root may listen below {_first_free_port()}"


def _first_free_port() -> int:
    """Source: the kernel's ip-sysctl.rst, ip_unprivileged_port_start."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return PRIVILEGED


def _reached(key: str, listen: str, advertise: str | None, coordinator: str | None) -> Iterator[Warned]:
    """Whether others could dial it: as the daemon itself will find."""
    advertised = parse_address(advertise) if advertise else None
    resolved = tuple(addresses_of(advertised.host)) if advertised else ()
    if advertised and not resolved:
        yield from _resolves(key, advertise)
        return
    host, port = parse_host_port(listen)
    hosts = addresses_of(host)
    if not hosts or not (is_wildcard(hosts[0]) or is_ours((hosts[0],))):
        return  # that was said
    towards = next(iter(addresses_of(parse_address(coordinator).host)), None) if coordinator else None
    listening = Address(host=hosts[0], port=port or 1)
    if trouble := reach_of(Place(listening, advertised, resolved, towards, key)).trouble:
        yield key, f"keeps others from dialling it: {trouble.replace(str(listening), listen)}"


def _resolves(key: str, text: str | None) -> Iterator[Warned]:
    if text and not addresses_of(parse_address(text).host):
        yield key, f"names {parse_address(text).host}, which nothing here can resolve: correct it, or its DNS entry"


def _folder(key: str, folder: Path) -> Iterator[Warned]:
    where = _nearest(folder)
    try:
        is_folder, may_write = where.is_dir(), os.access(where, os.W_OK | os.X_OK)
    except OSError:
        is_folder, may_write = False, False
    if not is_folder:
        yield key, f"is {folder}, and {where} is no folder"
    elif not may_write:
        yield key, f"is {folder}, and this user may not write into {where}"
    elif folder != MADE_WHEN_NEEDED and not folder.exists():
        yield key, f"is {folder}, which is not there: it is made when something is put into it"


def _nearest(folder: Path) -> Path:
    """Returns: the folder, or what is there of the path to it."""
    for path in (folder.absolute(), *folder.absolute().parents):
        if os.path.lexists(path):
            return path
    return Path("/")


def _home() -> Iterator[Warned]:
    home = Home().path
    where = _nearest(home)
    if not where.is_dir() or not os.access(where, os.W_OK | os.X_OK):
        yield "SHARDNET_HOME", f"is {home}, and this user may not write there: set it to a folder of yours"
