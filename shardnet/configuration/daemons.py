"""The daemons that have settings, and the one way in which these are read: by the daemon, by `seed` and `fetch`, and by `shardnet config`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from shardnet import log
from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.node.settings import NodeSettings
from shardnet.settings import Reading, Section, keys_of, read_settings, whole

Daemon = Literal["node", "coordinator"]
DAEMONS: dict[Daemon, type[NodeSettings] | type[CoordinatorSettings]] = {
    "node": NodeSettings,
    "coordinator": CoordinatorSettings,
}
S = TypeVar("S", NodeSettings, CoordinatorSettings)


def read_daemon(
    daemon: Daemon,
    *,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    flag_names: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Reading[Any]:
    """Returns: what a daemon's settings come to, each with where it was said, or all that is wrong; arguments as in `settings.read_settings`."""
    kind = DAEMONS[daemon]
    others = [other for other in DAEMONS.values() if other is not kind]
    return read_settings(kind, file=file, flags=flags, flag_names=flag_names, environ=environ, others=others)


def begin(
    kind: type[S],
    *,
    file: Path | None,
    flags: Mapping[str, Any],
    flag_names: Mapping[str, str],
    level: str | None = None,
) -> S:
    """Read the settings of a daemon that starts, set its log up by them, and warn of variables that nothing reads.

    Args:
        level: of the log, in place of what the settings say.

    Raises: SettingsError for the first fault.
    """
    daemon = next(name for name, one in DAEMONS.items() if one is kind)
    reading = read_daemon(daemon, file=file, flags=flags, flag_names=flag_names)
    settings: S = whole(reading)
    log.configure(level=level or settings.log.level, form=settings.log.format)  # type: ignore[arg-type]
    for sentence in reading.unread:
        log.get("settings").warning("variable_unread", reason=sentence)
    return settings


def daemon_of(values: Mapping[str, Any]) -> Daemon:
    """Returns: whose settings a file holds most likely: the daemon that knows the more of its keys, by their sections where they are misspelt."""
    return max(DAEMONS, key=lambda daemon: _likeness(DAEMONS[daemon], values))


def _likeness(kind: type[Section], values: Mapping[str, Any]) -> tuple[int, int]:
    known = keys_of(kind)
    places = {f"{section}.{key}" for section, inner in values.items() if isinstance(inner, dict) for key in inner}
    at_top = {name for name, value in values.items() if isinstance(value, dict) or name in known}
    return len((places | at_top) & set(known)), len(at_top & set(kind.model_fields))


def home_said() -> str:
    """Returns: where the home folder was said."""
    return "SHARDNET_HOME" if os.environ.get("SHARDNET_HOME") else "default"
