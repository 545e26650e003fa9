"""What can be said of a port of its own for figures."""

from __future__ import annotations

from pydantic import Field

from shardnet.settings import Section


class MetricsSettings(Section):
    """Figures for Prometheus at a port of their own."""

    listen: str = Field(
        default="",
        description='HOST:PORT that gives /metrics, and nothing else, to everybody who reaches it (plain HTTP, no key); "": nowhere',
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description='Host headers that are answered there besides IP addresses, localhost and the host of `listen`; ["*"]: all',
    )
