"""Everything that is wrong with a daemon's settings, at once: errors, with which it does not start, and warnings, with which it does."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shardnet.configuration.daemons import Daemon, read_daemon
from shardnet.configuration.machine import warnings_for
from shardnet.settings import Reading, keys_of, value_at


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence. `where`: the file and line, the variable or the flag that says it; "" for a default."""

    severity: Literal["error", "warning"]
    sentence: str
    key: str = ""
    where: str = ""

    def __str__(self) -> str:
        return f"{self.severity}: {self.sentence}"


def check_daemon(daemon: Daemon, file: Path | None, environ: Mapping[str, str] | None = None) -> list[Finding]:
    """Returns: what is wrong with the settings that a daemon would read now. Names are looked up, which may take seconds."""
    reading = read_daemon(daemon, file=file, environ=environ)
    found = [Finding("error", fault.sentence, fault.key, fault.origin.where) for fault in reading.faults]
    found.sort(key=lambda one: [int(number) for number in one.where.rpartition(":")[2:] if number.isdecimal()])
    found += [Finding("warning", sentence) for sentence in reading.unread]
    if any(not fault.key and fault.origin.source == "file" for fault in reading.faults):
        return found  # nothing is known of what a file says that cannot be read
    return [*found, *_warnings(reading), *_readable_secrets(reading, file)]


def _warnings(reading: Reading[Any]) -> Iterator[Finding]:
    wrong = {fault.key for fault in reading.faults}
    for key, words in warnings_for(reading.rest) if reading.rest is not None else ():
        if key in wrong:
            continue  # what is looked at is its default
        where = reading.origins[key].where if key in reading.origins else ""
        yield Finding("warning", f"{key}{f' in {where}' if where else ''} {words}", key, where)


def _readable_secrets(reading: Reading[Any], file: Path | None) -> Iterator[Finding]:
    if file is None or reading.rest is None:
        return
    mode = stat.S_IMODE(file.stat().st_mode)
    for key in keys_of(type(reading.rest)).values():
        origin = reading.origins.get(key.path)
        if (
            key.is_secret
            and value_at(reading.rest, key.path)
            and origin is not None
            and origin.source == "file"
            and mode & 0o077
        ):
            yield Finding(
                "warning",
                f"{key.path} in {origin.where} is secret, and others than its owner may read the file (mode {mode:o}): "
                f"`chmod 600 {file}`, or set it by {key.variable}",
                key.path,
                origin.where,
            )
