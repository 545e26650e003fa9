"""The DHT's own figures, which both daemons have."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric

from shardnet.dht.directory import Directory
from shardnet.errors import LocalProtocolError
from shardnet.metrics.family import counter, gauge

PEERS = gauge("dht_peers", "Members in this one's routing table.")
KEYS = gauge("dht_keys", "Keys that are kept for the network.")
RECORDS = gauge("dht_records", "Records that are kept for the network.")
ANNOUNCEMENTS = gauge("dht_announcements", "What this daemon announces itself.")
DATAGRAMS = counter("dht_datagrams", "UDP datagrams.", "direction")
BYTES = counter("dht_bytes", "Bytes of UDP datagrams.", "direction")
REFUSED = counter("dht_refused", "Datagrams, records and contacts that were refused.", "reason")


def dht(directory: Directory | None) -> Iterable[Metric]:
    """Yield its figures; nothing where there is no DHT, or it is not running."""
    try:
        stats = directory.stats() if directory is not None else None
    except LocalProtocolError:
        stats = None
    if stats is None:
        return
    yield PEERS.one(stats.contacts)
    yield KEYS.one(stats.keys)
    yield RECORDS.one(stats.records)
    yield ANNOUNCEMENTS.one(stats.announcements)
    yield DATAGRAMS.of({"in": stats.datagrams_in, "out": stats.datagrams_out})
    yield BYTES.of({"in": stats.bytes_in, "out": stats.bytes_out})
    yield REFUSED.of(dict(stats.refused))
