"""What libtorrent is given: a session of TCP only, without discovery of its own or any lookup beyond what it is told, and torrents to match."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import libtorrent as lt

from shardnet.errors import SettingsError
from shardnet.hosts import take_both_families
from shardnet.torrent.alerts import MASK
from shardnet.torrent.entry import Torrent
from shardnet.torrent.settings import TorrentSettings
from shardnet.torrent.slots import FIRST_SLOTS

ALERT_QUEUE = 20_000
"""libtorrent's own default of 2,000 overflows when many peers come and go between two turns of the loop."""

TICK_MS, LIMITED_TICK_MS = 100, 20
"""Connecting to a seed with an upload limit takes about five ticks; at 100 ms half a second went by before the first byte. Without a limit nobody
waits for ticks, and 50 of them a second took half a percent of a core from the engine."""

READ_AHEAD_BYTES = 2 << 20
"""Read from disk for each peer that is served, whatever it took last second. With libtorrent's 10 KiB a new peer gets a block at a time at first."""


def open_native(settings: TorrentSettings, *, with_tls: bool) -> Any:
    """Open a libtorrent session. Blocks for some milliseconds: call it in a thread.

    Args:
        with_tls: listen for SSL torrents only; otherwise for ordinary ones only.
    Raises: SettingsError if `listen_host` is not an IP address.
    """
    try:
        address = ipaddress.ip_address(settings.listen_host)
    except ValueError as error:
        raise SettingsError(f"torrent.listen_host must be an IP address, not {settings.listen_host!r}") from error
    has_limit = settings.upload_limit_bytes_per_s > 0 or settings.download_limit_bytes_per_s > 0
    encryption = lt.enc_policy.pe_disabled if with_tls else lt.enc_policy.pe_enabled
    session = lt.session(
        {
            "listen_interfaces": _interfaces(address, settings.listen_port, "s" if with_tls else ""),
            "listen_system_port_fallback": False,
            "max_retry_port_bind": 0,
            "alert_mask": int(MASK),
            "alert_queue_size": ALERT_QUEUE,
            # Who holds what is our own directory's business.
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            # uTP was measured at a tenth of TCP's speed.
            "enable_outgoing_utp": False,
            "enable_incoming_utp": False,
            # The old obfuscation is no security; under TLS it only costs handshakes.
            "out_enc_policy": int(encryption),
            "in_enc_policy": int(encryption),
            # Several nodes behind one address, or on one machine, are several peers.
            "allow_multiple_connections_per_ip": True,
            "connections_limit": settings.max_connections,
            "unchoke_slots_limit": settings.max_uploads,
            "upload_rate_limit": settings.upload_limit_bytes_per_s,
            "download_rate_limit": settings.download_limit_bytes_per_s,
            # A guess at TCP/IP headers and acknowledgements, which would make a limit some 5 % tighter than what it says.
            "rate_limit_ip_overhead": False,
            # Peers are few and known: come back soon, and never write one off.
            "min_reconnect_time": 1,
            "max_failcount": 255,
            "peer_connect_timeout": 5,
            "handshake_timeout": 5,
            # A peer says something every three seconds; one that moved or vanished without a word keeps no blocks for long.
            "peer_timeout": 6,
            "request_timeout": 10,
            # Where a limit is set, every message of a handshake waits for a tick.
            "tick_interval": LIMITED_TICK_MS if has_limit else TICK_MS,
            "unchoke_interval": 1,
            # Pieces that a peer may have while it waits for a slot (BEP 6). Five for each peer of a seed would be five each that others have already.
            "allowed_fast_set_size": 0,
            "send_buffer_low_watermark": READ_AHEAD_BYTES,
            "send_buffer_watermark": 2 * READ_AHEAD_BYTES,
            "stop_tracker_timeout": 0,
            "user_agent": "shardnet",
        }
    )
    # By default libtorrent puts local addresses into a class of their own that no limit binds.
    everyone = lt.ip_filter()
    everyone.add_rule("0.0.0.0", "255.255.255.255", 1 << lt.session.global_peer_class_id)
    everyone.add_rule("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1 << lt.session.global_peer_class_id)
    session.set_peer_class_filter(everyone)
    return session


def _interfaces(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, suffix: str) -> str:
    """Returns: where libtorrent is to listen. It takes a wildcard for each address of the machine, and would give each a port of its own where none
    is named; and its IPv6 sockets take IPv6 alone, so that `::` has to be both wildcards."""
    if address.is_unspecified:
        port = port or _free_port(str(address))
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"{host}:{port}{suffix}" + (f",0.0.0.0:{port}{suffix}" if host == "[::]" else "")


def _free_port(wildcard: str) -> int:
    """Returns: a TCP port that is free at every address now."""
    family = socket.AF_INET6 if ":" in wildcard else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if family == socket.AF_INET6:
            take_both_families(probe, wildcard)
        probe.bind((wildcard, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of a torrent's file. `offset`, `n_bytes`: where it stands there."""

    index: int
    offset: int
    n_bytes: int


def missing_pieces(native: Any, file_bytes: int) -> list[Piece]:
    """Returns: a torrent's pieces that are not here, in order; none while its file is being looked at. Blocks: call it in a thread."""
    status, info = native.status(lt.status_flags_t.query_pieces), native.torrent_file()
    if info is None or status.state not in (lt.torrent_status.states.downloading, lt.torrent_status.states.finished):
        return []
    size = info.piece_length()
    return [
        Piece(index, index * size, min(size, file_bytes - index * size))
        for index, is_here in enumerate(status.pieces)
        if not is_here
    ]


def put_piece(native: Any, piece: Piece, data: bytes) -> None:
    """Give a torrent a whole piece, to be proved by its hashes as if a peer had sent it. One of another length is passed over."""
    native.add_piece(piece.index, data, 0)


def refusing(hosts: Iterable[str]) -> Any:
    """Returns: an IP filter of libtorrent's that keeps these addresses out, and nobody else."""
    refused = lt.ip_filter()
    for host in hosts:
        refused.add_rule(host, host, 1)
    return refused


def torrent_params(torrent: Torrent, resume: bytes | None, web_seeds: tuple[str, ...]) -> Any:
    """Returns: libtorrent's parameters for adding a torrent, paused, with what `resume` says is there already. Blocks: call it in a thread.

    A seed is marked as one that begins with `FIRST_SLOTS` upload slots.
    """
    params = lt.load_torrent_buffer(torrent.metainfo)
    if resume is not None:
        saved = lt.read_resume_data(resume)
        if str(saved.info_hashes.v2) == torrent.facts.info_hash:
            params.have_pieces = saved.have_pieces
            params.verified_pieces = saved.verified_pieces
            if not torrent.bans:
                # Else blocks of a banned peer may be among them, and libtorrent would blame whoever completes the piece.
                params.unfinished_pieces = saved.unfinished_pieces
    flags = lt.torrent_flags
    chosen = flags.default_flags | flags.paused | flags.duplicate_is_error | flags.override_web_seeds
    chosen &= ~flags.auto_managed
    if torrent.is_seed:
        # Upload mode: a seed whose file turns out to be rotten must never write into it.
        chosen |= flags.seed_mode | flags.upload_mode
        params.max_uploads = FIRST_SLOTS
        torrent.has_first_slots = True
    params.flags = chosen
    params.save_path = str(torrent.folder)
    params.renamed_files = {0: torrent.file_name}
    params.trackers = []
    params.dht_nodes = []
    params.url_seeds = list(web_seeds)
    return params
