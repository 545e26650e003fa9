"""A machine that nobody types at joins by itself: its join token lies in a file, and is used once.

For containers and services. Knows when a home needs a token at all; how one becomes a certificate `enrol` knows.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from shardnet.errors import PeerRefused, UnreachableError
from shardnet.files import text_of
from shardnet.lifecycle import Backoff
from shardnet.log import get
from shardnet.swarm.enrol import enrol
from shardnet.swarm.home import Home
from shardnet.swarm.identity import checked_name
from shardnet.swarm.naming import machine_name
from shardnet.swarm.tokens import parse_token

SETTING = "node.join_token_file"

log = get("swarm")


async def join_once(file: Path, home: Home, name: str | None) -> None:
    """Join with the token in `file`, unless this home has a certificate of that name already, or can make one; then the file is not read.

    Args:
        name: what the node is to be called; None: as the machine, and any certificate will do.

    Waits for a coordinator that cannot be reached, as long as the token is good.
    Raises: UsageError if the file cannot be read or holds no token; PeerRefused if the token is expired, used or unknown; SettingsError.
    """
    wanted = machine_name() if name is None else checked_name(name)
    if home.is_owner or (home.has_swarm and any(home.nodes.glob(f"{name or '*'}/cert.pem"))):
        return
    text = await asyncio.to_thread(text_of, file, SETTING)
    token = parse_token(text.strip())
    backoff, told = Backoff(), ""
    while True:
        try:
            identity = await enrol(token, home, wanted)
        except PeerRefused:
            raise
        except UnreachableError as error:
            if str(error) != told:  # once for each reason, not once for each attempt
                told = str(error)
                log.warning("node_not_enrolled", reason=told)
            await asyncio.sleep(backoff.next_delay_s())
        else:
            identity.release()
            return
