"""The torrent section of a daemon's settings."""

from __future__ import annotations

from pydantic import Field

from shardnet.settings import MOST_BYTES, Section

INT32 = (1 << 31) - 1
"""The largest number of libtorrent's own settings."""


class TorrentSettings(Section):
    """How shards are given and taken. Limits hold for every peer, those on loopback and the local network included."""

    listen_host: str = Field(default="127.0.0.1", description="IP address that peers connect to; 0.0.0.0 for all")
    listen_port: int = Field(default=0, ge=0, le=65535, description="TCP port for peers; 0 takes any free one")
    upload_limit_bytes_per_s: int = Field(
        default=0, ge=0, le=INT32, description="most bytes sent per second; 0 means no limit"
    )
    download_limit_bytes_per_s: int = Field(
        default=0, ge=0, le=INT32, description="most bytes taken per second; 0 means no limit"
    )
    max_connections: int = Field(
        default=200, ge=2, le=65_535, description="most peer connections at once, all shards together"
    )
    max_uploads: int = Field(default=16, ge=1, le=65_535, description="most peers that are sent data at once")
    disk_budget_bytes: int = Field(
        default=0, ge=0, le=MOST_BYTES, description="most bytes of shard files kept; 0 means no budget"
    )
    keep_free_bytes: int = Field(
        default=128 << 20, ge=0, le=MOST_BYTES, description="disk space that a download leaves free"
    )
    stall_timeout_s: float = Field(
        default=10.0, gt=0, le=86_400, description="no progress for so long is a stall: remedies begin"
    )
    reconnect_interval_s: float = Field(
        default=2.0, ge=0.01, le=86_400, description="how often lost peers of a download are dialled"
    )
    progress_interval_s: float = Field(
        default=1.0, ge=0.01, le=3600, description="how often rates and progress are reported"
    )
    flush_interval_s: float = Field(
        default=1.0, ge=0.01, le=3600, description="how often a download's bytes leave libtorrent's memory"
    )
    web_seeds_allowed: bool = Field(default=False, description="also download by HTTP from the torrent's web seeds")
