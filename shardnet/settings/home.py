"""The folder of swarm keys and node identities: `$SHARDNET_HOME`, else `~/.shardnet`."""

from __future__ import annotations

import os
from pathlib import Path

from shardnet.errors import SettingsError


def default_home() -> Path:
    """Returns: the folder of swarm keys and node identities: `$SHARDNET_HOME`, else `~/.shardnet`.

    Raises: as `expand_user`.
    """
    return expand_user(Path(os.environ.get("SHARDNET_HOME") or "~/.shardnet"))


def expand_user(path: Path) -> Path:
    """Returns: the path, a `~` at its beginning replaced.

    Raises: SettingsError if this user has no home folder: no HOME, and no entry in the system's list of users, as in many a container.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise SettingsError(
            f"user {os.getuid()} has no home folder to find {path} in (no HOME, no entry in the list of users): "
            "set SHARDNET_HOME to a folder of yours"
        ) from error
