"""Figures of one torrent, and the time that is left. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shardnet.log import human_bytes


@dataclass(frozen=True, slots=True)
class TorrentStats:
    """One torrent at one moment. Rates are payload only, averaged by libtorrent over some seconds."""

    info_hash: str
    label: str
    is_seeding: bool
    is_checking: bool
    """True while bytes that were here before are hashed; `bytes_done` then counts what has been found good."""
    bytes_done: int
    bytes_total: int
    download_bytes_per_s: int
    peers: int
    downloaded_bytes: int
    """Payload taken from peers since this torrent was added, bad and repeated bytes included."""
    uploaded_bytes: int
    banned_peers: int

    @property
    def fraction(self) -> float:
        """Returns: share of the file that is here, 0 to 1."""
        return self.bytes_done / self.bytes_total

    @property
    def eta_s(self) -> float | None:
        """Returns: seconds left at the present rate; None while nothing comes in."""
        if self.bytes_done >= self.bytes_total:
            return 0.0
        if self.download_bytes_per_s <= 0:
            return None
        return (self.bytes_total - self.bytes_done) / self.download_bytes_per_s

    def log_fields(self) -> dict[str, object]:
        """Returns: keys of the milestone `torrent_progress`, whose line is `shard 3 42 % 118 MB/s, 3 peers, 12 s left`."""
        return {
            "shard_id": self.label,
            "percent": 100 * self.fraction,
            "rate": f"{human_bytes(self.download_bytes_per_s)}/s",
            "peers": self.peers,
            "left": "" if self.eta_s is None else f", {human_seconds(self.eta_s)} left",
        }


def human_seconds(seconds: float) -> str:
    """Returns: `12 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
