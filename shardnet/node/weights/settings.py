"""What can be said of how this node takes and gives shards."""

from __future__ import annotations

from pydantic import Field

from shardnet.torrent.settings import TorrentSettings


class NodeTorrentSettings(TorrentSettings):
    """How this node takes and gives shards."""

    enabled: bool = Field(default=True, description="take and give shards; false: this node has what its folder has")
    listen_host: str = Field(
        default="", description="IP address that other nodes' transfers connect to; empty: the host of node.listen"
    )
    advertise_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="TCP port at which others reach `listen_port`, behind port forwarding; 0: the same",
    )
    find_holders_s: float = Field(
        default=5.0,
        ge=0,
        le=86_400,
        description="seconds to look for a holder of a shard before saying that there is none",
    )
    give_up_s: float = Field(
        default=300.0,
        gt=0,
        le=30 * 86_400,
        description="seconds without a byte after which a download is given up; its pieces are kept",
    )
