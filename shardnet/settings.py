"""Base class of all settings sections, and the loader: defaults < TOML < environment < flags.

Each subpackage defines the frozen section that it reads; the daemons compose them. Nothing is read at import.
Environment: `SHARDNET_<SECTION>__<KEY>`, as pydantic-settings names nested fields; `SHARDNET_HOME` moves the home folder.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shardnet.errors import SettingsError


class Section(BaseModel):
    """One frozen group of settings. Units live in the names; every field has a description."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=Section)


def default_home() -> Path:
    """Returns: the folder of swarm keys and node identities: `$SHARDNET_HOME`, else `~/.shardnet`."""
    return Path(os.environ.get("SHARDNET_HOME") or Path.home() / ".shardnet")


def load_settings(
    kind: type[S],
    *,
    file: Path | None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> S:
    """Read one daemon's settings.

    Args:
        file: a TOML file, or None for defaults.
        flags: `{"section.key": value}` or `{"key": value}`; None values are flags that were not given.
        environ: the environment, `os.environ` by default.

    Raises: SettingsError naming the file or variable, the key and what is wrong with it.
    """
    merged: dict[str, Any] = {}
    if file is not None:
        merged = _read_toml(file)
    for name, value in sorted((os.environ if environ is None else environ).items()):
        if name.startswith("SHARDNET_") and name != "SHARDNET_HOME":
            _put(merged, name.removeprefix("SHARDNET_").lower().split("__"), value, kind)
    for path, value in (flags or {}).items():
        if value is not None:
            _put(merged, path.split("."), value, None)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        source = f" in {file}" if file is not None else ""
        raise SettingsError(f"setting {where!r}{source}: {first['msg']} (got {first.get('input')!r})") from error


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read settings file {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {file} is not TOML: {error}") from error


def _put(into: dict[str, Any], path: list[str], value: Any, only_known: type[Section] | None) -> None:
    if only_known is not None and path[0] not in only_known.model_fields:
        return  # the environment holds other programs' variables too
    for key in path[:-1]:
        into = into.setdefault(key, {})
    into[path[-1]] = value
