"""libtorrent's alerts as our own plain data. An alert is only valid until the next `pop_alerts`; an `Event` is valid for ever."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

import libtorrent as lt

MASK = (
    lt.alert_category.error
    | lt.alert_category.status
    | lt.alert_category.storage
    | lt.alert_category.peer
    | lt.alert_category.connect
)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that libtorrent told."""


@dataclass(frozen=True, slots=True)
class Listening(Event):
    """The session accepts peers at `port`."""

    port: int


@dataclass(frozen=True, slots=True)
class ListenFailed(Event):
    """The listening socket could not be opened."""

    reason: str


@dataclass(frozen=True, slots=True)
class AlertsDropped(Event):
    """Alerts came faster than they were read, and some are lost."""


@dataclass(frozen=True, slots=True)
class Status:
    """Figures of one torrent."""

    info_hash: str
    is_checking: bool
    bytes_done: int
    download_bytes_per_s: int
    peers: int
    downloaders: int
    """Those of `peers` that lack pieces."""
    downloaded_bytes: int
    uploaded_bytes: int


@dataclass(frozen=True, slots=True)
class Statuses(Event):
    """Figures of the torrents that changed since the last time."""

    changed: tuple[Status, ...]


@dataclass(frozen=True, slots=True)
class TorrentEvent(Event):
    """Something about one torrent, named by its v2 info-hash or, where the alert does not tell, by its handle's hash."""

    handle: int


@dataclass(frozen=True, slots=True)
class Added(Event):
    """`native` is the torrent's handle; `reason` is set instead if it was refused."""

    info_hash: str
    native: Any
    reason: str | None


@dataclass(frozen=True, slots=True)
class Removed(Event):
    """libtorrent has let go of the torrent and its file."""

    info_hash: str


@dataclass(frozen=True, slots=True)
class Finished(TorrentEvent):
    """All pieces are verified; not all of them need to be on disk yet."""


@dataclass(frozen=True, slots=True)
class Flushed(TorrentEvent):
    """Everything received before is in the file."""


@dataclass(frozen=True, slots=True)
class ResumeData(TorrentEvent):
    """`resume` is libtorrent's resume data, or None if there is none to save."""

    resume: bytes | None


@dataclass(frozen=True, slots=True)
class Renamed(TorrentEvent):
    """The file has its new name; `reason` is set instead if that failed."""

    reason: str | None


@dataclass(frozen=True, slots=True)
class TorrentFailed(TorrentEvent):
    """The torrent stopped: the disk is full, a file cannot be read or written, or a certificate is bad."""

    reason: str
    is_disk_full: bool


@dataclass(frozen=True, slots=True)
class PieceFailed(TorrentEvent):
    """A piece did not match its hash."""

    piece: int


@dataclass(frozen=True, slots=True)
class PeerBanned(TorrentEvent):
    """A peer sent bad bytes and is cut off."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class PeerGone(TorrentEvent):
    """A connection to a peer ended or could not be made."""

    host: str
    port: int
    reason: str


@dataclass(frozen=True, slots=True)
class StateChanged(TorrentEvent):
    """The torrent is `downloading`, `seeding`, ..."""

    state: str


_CHECKING = frozenset({"checking_files", "checking_resume_data", "queued_for_checking"})


def _status(native: Any) -> Status:
    return Status(
        info_hash=str(native.info_hashes.v2),
        is_checking=str(native.state) in _CHECKING,
        bytes_done=int(native.total_wanted_done),
        download_bytes_per_s=int(native.download_payload_rate),
        peers=int(native.num_peers),
        downloaders=max(0, int(native.num_peers) - int(native.num_seeds)),
        downloaded_bytes=int(native.total_payload_download),
        uploaded_bytes=int(native.total_payload_upload),
    )


def translate(alert: Any) -> Event | None:
    """Returns: the alert as plain data, or None if nobody here cares."""
    match alert:
        case lt.listen_succeeded_alert():
            return Listening(int(alert.port))
        case lt.listen_failed_alert():
            return ListenFailed(str(alert.error.message()))
        case lt.alerts_dropped_alert():
            return AlertsDropped()
        case lt.state_update_alert():
            return Statuses(tuple(_status(native) for native in alert.status))
        case lt.add_torrent_alert():
            reason = str(alert.error.message()) if alert.error.value() else None
            return Added(str(alert.params.info_hashes.v2), alert.handle, reason)
        case lt.torrent_removed_alert():
            return Removed(str(alert.info_hashes.v2))
        case lt.torrent_alert():
            return _translate_torrent(alert, hash(alert.handle))
    return None


def _translate_torrent(alert: Any, handle: int) -> Event | None:
    match alert:
        case lt.torrent_finished_alert():
            return Finished(handle)
        case lt.cache_flushed_alert():
            return Flushed(handle)
        case lt.save_resume_data_alert():
            return ResumeData(handle, bytes(lt.write_resume_data_buf(alert.params)))
        case lt.save_resume_data_failed_alert():
            return ResumeData(handle, None)
        case lt.file_renamed_alert():
            return Renamed(handle, None)
        case lt.file_rename_failed_alert():
            return Renamed(handle, str(alert.error.message()))
        case lt.file_error_alert():
            full = alert.error.value() in (errno.ENOSPC, errno.EDQUOT)
            return TorrentFailed(handle, str(alert.error.message()), full)
        case lt.torrent_error_alert():
            return TorrentFailed(handle, str(alert.error.message()), alert.error.value() == errno.ENOSPC)
        case lt.hash_failed_alert():
            return PieceFailed(handle, int(alert.piece_index))
        case lt.peer_ban_alert():
            return PeerBanned(handle, *alert.endpoint)
        case lt.peer_disconnected_alert() | lt.peer_error_alert():
            return PeerGone(handle, *alert.endpoint, str(alert.error.message()))
        case lt.state_changed_alert():
            return StateChanged(handle, str(alert.state))
    return None
