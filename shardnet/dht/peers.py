"""Peers remembered across restarts: a small JSON file, replaced whole, believed only as far as a list of addresses to ask."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

from shardnet.files import write_whole
from shardnet.ids import NodeId
from shardnet.log import get
from shardnet.shards import Frozen

log = get("dht")

MAX_PEERS = 64
MAX_FILE_BYTES = 64 * 1024


def _ip_address(text: str) -> str:
    return str(ipaddress.ip_address(text))


class RememberedPeer(Frozen):
    """Where a node was last heard."""

    node_id: NodeId
    host: Annotated[str, AfterValidator(_ip_address)] = Field(max_length=64, description="IP address")
    port: int = Field(ge=1, le=65535, description="UDP port")


class PeersFile(Frozen):
    """The file. `sequence`: the highest one used in a record, so that a clock set back does not silence us."""

    format: int = Field(default=1, ge=1, le=1)
    sequence: int = Field(default=0, ge=0, lt=1 << 63)
    peers: tuple[RememberedPeer, ...] = Field(default=(), max_length=MAX_PEERS, strict=False)


def read_peers(file: Path) -> PeersFile:
    """Returns: what was remembered; nothing (and a warning) if the file cannot be used. Blocks on the disk."""
    try:
        with file.open("rb") as source:
            text = source.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ValueError(f"over {MAX_FILE_BYTES} bytes")
        return PeersFile.model_validate_json(text)
    except FileNotFoundError:
        return PeersFile()
    except (OSError, ValueError, ValidationError) as error:
        log.warning("dht_peers_unreadable", path=str(file), reason=str(error).splitlines()[0])
        return PeersFile()


def write_peers(file: Path, content: PeersFile) -> bool:
    """Replace the file in one step. Returns: False (and a warning) if the disk would not have it. Blocks on the disk."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content.model_dump_json(indent=1).encode() + b"\n", mode=0o600)
    except OSError as error:
        log.warning("dht_peers_not_saved", path=str(file), reason=error.strerror)
        return False
    return True
