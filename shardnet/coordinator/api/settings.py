"""What can be said of who may use the HTTP API."""

from __future__ import annotations

from pydantic import Field

from shardnet.settings import Section


class ApiSettings(Section):
    """Who may use the HTTP API."""

    key: str = Field(
        default="", max_length=512, repr=False, description='clients must send it as "Authorization: Bearer"; "": none'
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=("localhost", "127.0.0.1", "::1"),
        strict=False,
        description='Host headers that are answered, against pages that rebind DNS names; ["*"]: all',
    )
