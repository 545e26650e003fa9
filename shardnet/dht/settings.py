"""What a person may set about the DHT. Units live in the names."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from shardnet.settings import Section


class DhtSettings(Section):
    """The `[dht]` section. The defaults suit a LAN or a handful of sites; tests shorten the times."""

    listen_host: str = Field(
        default="127.0.0.1",
        description="IP address the UDP socket is bound to; nothing beyond loopback hears us unless this is changed",
    )
    listen_port: int = Field(default=0, ge=0, le=65535, description="UDP port; 0 takes any free one")
    bootstrap: tuple[str, ...] = Field(
        default=(), description='peers to ask first, each "host:port" (IPv6 as "[host]:port"); names are resolved'
    )
    record_ttl_s: float = Field(
        default=120, ge=1, le=86_400, description="life of an announcement, seconds; a dead node is forgotten after it"
    )
    announce_interval_s: float | None = Field(
        default=None, gt=0, description="seconds between renewals; a third of record_ttl_s when left out"
    )
    max_record_ttl_s: float = Field(
        default=600, ge=1, le=86_400, description="records that promise to live longer, seconds, are refused"
    )
    sweep_interval_s: float = Field(
        default=20, gt=0, le=3_600, description="seconds between pings of every contact not heard from meanwhile"
    )
    max_clock_skew_s: float = Field(
        default=30, gt=0, le=300, description="datagrams stamped further than this from our clock, seconds, are refused"
    )
    ksize: int = Field(default=16, ge=2, le=16, description="how many nodes keep each record (Kademlia's k)")
    alpha: int = Field(default=4, ge=1, le=16, description="calls that one lookup keeps under way at once")
    call_retry_s: float = Field(
        default=0.25, gt=0, le=10, description="seconds to wait for a reply before asking again"
    )
    call_attempts: int = Field(
        default=3, ge=1, le=10, description="times a peer is asked before its contact is dropped"
    )
    crawl_timeout_s: float = Field(default=3, gt=0, le=60, description="longest time of one lookup, seconds")
    leave_timeout_s: float = Field(
        default=2, ge=0, le=60, description="longest time spent on withdrawing announcements when leaving, seconds"
    )
    max_calls_in_flight: int = Field(
        default=32, ge=1, le=1_024, description="calls under way at once, over all lookups"
    )
    max_publications_at_once: int = Field(
        default=2,
        ge=1,
        le=64,
        description="announcements under way at once: a node with a hundred shards must not burst",
    )
    max_holders_per_key: int = Field(default=64, ge=1, le=1_024, description="records kept for one key")
    max_keys: int = Field(default=10_000, ge=1, le=1_000_000, description="keys kept for the network")
    max_records: int = Field(default=50_000, ge=1, le=10_000_000, description="records kept for the network, all keys")
    max_keys_per_node: int = Field(
        default=1_024, ge=1, le=1_000_000, description="keys kept for one announcer, so that none can fill the store"
    )

    @field_validator("bootstrap")
    @classmethod
    def _bootstrap_is_host_and_port(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            split_host_port(entry)
        return entries

    @model_validator(mode="after")
    def _times_fit(self) -> DhtSettings:
        if self.record_ttl_s > self.max_record_ttl_s:
            raise ValueError(f"record_ttl_s {self.record_ttl_s:g} is over max_record_ttl_s {self.max_record_ttl_s:g}")
        if self.renew_every_s >= self.record_ttl_s:
            raise ValueError("announce_interval_s must be shorter than record_ttl_s, or announcements lapse")
        return self

    @property
    def renew_every_s(self) -> float:
        """Returns: seconds between renewals of one announcement."""
        return self.announce_interval_s if self.announce_interval_s is not None else self.record_ttl_s / 3


def split_host_port(text: str) -> tuple[str, int]:
    """Read `host:port`, or `[ipv6]:port`.

    Raises: ValueError if it is neither, or the port is not 1 to 65535.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not host or len(host) > 253 or (":" in host and not bracketed):
        raise ValueError(f'{text!r} is not "host:port"')
    if not (port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= 65535):
        raise ValueError(f"{text!r}: the port must be 1 to 65535")
    return host, int(port)
