"""The identifiers of the protocol. They are plain strings with a checked shape, so that none can ever be used as a path.

Knows nothing of files, sockets or any other module of ours.
"""

from __future__ import annotations

import secrets
from typing import Annotated, NewType

from pydantic import Field

ModelId = Annotated[
    str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the manifest's content, lower-case hex")
]
NodeId = Annotated[
    str, Field(pattern=r"^[0-9a-f]{40}$", description="first 160 bits of SHA-256 of the public key, hex")
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, lower-case hex")]
CommandId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", description="names one command and its one final answer")]
SequenceId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", description="names one growing token stream")]

ShardKey = NewType("ShardKey", tuple[str, int])
"""`(model_id, shard_id)`: one shard of one model, as a dictionary key."""

SHORT_ID_CHARS = 12
"""How many hex digits of an id people see: enough to be unique among the models and nodes of one swarm."""


def new_id() -> str:
    """Returns: 64 random bits as 16 hex digits, for a command or a sequence."""
    return secrets.token_hex(8)


def short(identifier: str) -> str:
    """Returns: the part of a node or model id that is shown to people."""
    return identifier[:SHORT_ID_CHARS]
