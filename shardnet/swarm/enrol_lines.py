"""Enrolment: how a machine with a join token obtains a certificate of the swarm. This file: what the two ends say.

The newcomer has no certificate yet, so the service is a TLS listener of its own that asks for none. All it can do is this one exchange,
in JSON lines of at most 16 KiB:

    service   -> Authority(certificate of the swarm)
    newcomer     compares it with the fingerprint in the token, and the service's own certificate with it; only then
    newcomer  -> Request(secret, certificate request, name)
    service   -> Answer(certificate, swarm key, where nodes connect; or an error)

The service's certificate is marked (`OU=enrolment`), which no member's is: a member in the middle can forge neither the swarm nor the service.
The answer to a repeated request with the same key is the same again, because an answer can be lost on the way.
"""

from __future__ import annotations

import asyncio
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from shardnet.errors import RemoteProtocolError
from shardnet.messages import ErrorInfo
from shardnet.shards import Frozen
from shardnet.swarm.records import NAME_PATTERN

MAX_LINE_BYTES = 16 << 10
STEP_TIMEOUT_S = 5.0


class Authority(Frozen):
    """The swarm's certificate, PEM."""

    type: Literal["AUTHORITY"] = "AUTHORITY"
    certificate: str = Field(max_length=8192)


class Request(Frozen):
    """What the newcomer asks for; `secret` is base64."""

    type: Literal["REQUEST"] = "REQUEST"
    secret: str = Field(max_length=64, repr=False)
    request: str = Field(max_length=4096)
    name: str = Field(pattern=NAME_PATTERN)


class Admission(Frozen):
    """The newcomer is a member; `swarm_key` is base64."""

    type: Literal["ADMISSION"] = "ADMISSION"
    certificate: str = Field(max_length=8192)
    swarm_key: str = Field(max_length=64, repr=False)
    nodes_port: int | None = Field(default=None, ge=1, le=65_535, description="where the coordinator takes nodes")
    name: str | None = Field(
        default=None,
        pattern=NAME_PATTERN,
        description="what it is called, where a living member had the name that was asked for",
    )


class Answer(Frozen):
    """One of the two answers to a request."""

    admission: Admission | None = None
    refused: ErrorInfo | None = None


Line = TypeVar("Line", bound=Frozen)


async def read_line(reader: asyncio.StreamReader, kind: type[Line]) -> Line:
    """Returns: the peer's next line.

    Raises: RemoteProtocolError if it is none, ConnectionResetError if there is none, TimeoutError after `STEP_TIMEOUT_S`.
    """
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            line = await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        raise RemoteProtocolError(f"a line of more than {MAX_LINE_BYTES} bytes") from None
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise RemoteProtocolError("the connection ended within a line") from None
        raise ConnectionResetError("the connection ended") from None
    try:
        return kind.model_validate_json(line)
    except ValidationError:
        raise RemoteProtocolError(f"a line that is no {kind.__name__}") from None


async def write_line(writer: asyncio.StreamWriter, line: Frozen) -> None:
    """Send one line. Raises: TimeoutError, OSError."""
    # What is None is left out: a newcomer of an older version knows no field that came later.
    writer.write(line.model_dump_json(exclude_none=True).encode() + b"\n")
    async with asyncio.timeout(STEP_TIMEOUT_S):
        await writer.drain()


async def close_line(writer: asyncio.StreamWriter) -> None:
    """End the connection, whatever state it is in."""
    writer.close()
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()
