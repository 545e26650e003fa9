"""Records in the home that another process changes: commands can only leave a file, and running daemons follow it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from shardnet.errors import SettingsError
from shardnet.log import get
from shardnet.swarm.home import load_records

FOLLOW_INTERVAL_S = 1.0
T = TypeVar("T")
Stamp = tuple[int, int]
log = get("swarm")


async def follow_records(
    path: Path, kind: TypeAdapter[T], on_change: Callable[[T], None], *, interval_s: float = FOLLOW_INTERVAL_S
) -> None:
    """Tell `on_change` what stands in a file, at once and after each change, until cancelled.

    A file that is gone or damaged changes nothing: who was shut out stays out.
    """
    seen: Stamp | None = None
    while True:
        seen, records = await asyncio.to_thread(_read_if_changed, path, kind, seen)
        if records is not None:
            on_change(records)
        await asyncio.sleep(interval_s)


def _read_if_changed(path: Path, kind: TypeAdapter[T], seen: Stamp | None) -> tuple[Stamp | None, T | None]:
    try:
        status = path.stat()
    except OSError:
        return None, None
    stamp = (status.st_mtime_ns, status.st_ino)
    if stamp == seen:
        return seen, None
    try:
        return stamp, load_records(path, kind)
    except FileNotFoundError:
        return None, None
    except SettingsError as error:
        log.error("records_unreadable", reason=str(error))
        return stamp, None
