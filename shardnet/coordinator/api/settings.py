"""What can be said of who may use the HTTP API."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from shardnet.settings import Section

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#]+")
"""Source: RFC 6454, section 6.2."""


class ApiSettings(Section):
    """Who may use the HTTP API."""

    key: str = Field(
        default="",
        max_length=512,
        repr=False,
        description='a key besides those of `shardnet key`, sent as "Authorization: Bearer"; "": none',
    )
    page: bool = Field(default=True, description="serve the web page at /")
    allowed_hosts: tuple[str, ...] = Field(
        default=("localhost", "127.0.0.1", "::1"),
        strict=False,
        description='Host headers that are answered, against pages that rebind DNS names; ["*"]: all',
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description='pages of other sites that may use the API, such as "https://chat.example"; ["*"]: all',
    )

    @field_validator("allowed_origins")
    @classmethod
    def _origins_have_no_path(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for one in origins:
            if one != "*" and not ORIGIN.fullmatch(one):
                raise ValueError(
                    f"has {one!r}, which is no origin: write scheme, host and port, as https://chat.example:8443"
                )
        return origins
