"""What a download tells of itself, to be changed where a test wants it."""

from __future__ import annotations

from shardnet.torrent.progress import TorrentStats

STATS = TorrentStats(
    info_hash="0" * 64,
    label="3",
    is_seeding=False,
    is_checking=False,
    bytes_done=420,
    bytes_total=1000,
    download_bytes_per_s=118_000_000,
    peers=3,
    downloaded_bytes=430,
    uploaded_bytes=0,
    banned_peers=0,
)
