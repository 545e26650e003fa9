"""Base class of all settings sections, and the loader: defaults < TOML < environment < flags.

Each subpackage defines the frozen section that it reads; the daemons compose them. Nothing is read at import.
Environment: `SHARDNET_<SECTION>__<KEY>`, as pydantic-settings names nested fields; a list is written as JSON or with commas, a section as JSON.
`SHARDNET_HOME` moves the home folder.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from shardnet.errors import SettingsError
from shardnet.faults import first_fault

OF_COMMANDS = frozenset({"SHARDNET_API"})
"""Variables that commands read, and that have a section's name: an address there is no setting."""
SECRET = frozenset({"key", "keys"})
"""Settings whose values no error repeats."""


class Section(BaseModel):
    """One frozen group of settings. Units live in the names; every field has a description."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=Section)


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
    sources: dict[str, str] = {}
    if file is not None:
        merged = _read_toml(file)
    for name, value in sorted((os.environ if environ is None else environ).items()):
        path = name.removeprefix("SHARDNET_").lower().split("__")
        is_ours = name.startswith("SHARDNET_") and path[0] in kind.model_fields  # others are other programs'
        if is_ours and not (name in OF_COMMANDS and not value.lstrip().startswith("{")):
            _put(merged, path, _from_text(value, _type_at(kind, path), name))
            sources[".".join(path)] = name
    for key, value in (flags or {}).items():
        if value is not None:
            _put(merged, key.split("."), value)
            sources[key] = ""
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        where, what = first_fault(error)
        origin = next((sources[one] for one in sources if where == one or where.startswith(f"{one}.")), f"{file or ''}")
        source = f" in {origin}" if origin else ""
        raise SettingsError(f"setting {where!r}{source} {what}{_given(error, where)}") from error


def _type_at(kind: type[Section], path: list[str]) -> Any:
    """Returns: the type of a setting; None if there is none of that name."""
    found: Any = kind
    for key in path:
        if not (isinstance(found, type) and issubclass(found, Section) and key in found.model_fields):
            return None
        found = found.model_fields[key].annotation
    return found


def _from_text(text: str, wanted: Any, name: str) -> Any:
    """Returns: a variable's value as TOML would hold it. Raises: SettingsError if it begins like JSON and is none."""
    is_section = isinstance(wanted, type) and issubclass(wanted, Section)
    is_list = get_origin(wanted) in (tuple, list)
    if not (is_section or is_list):
        return text
    if is_list and not text.lstrip().startswith("["):
        return [entry.strip() for entry in text.split(",") if entry.strip()]
    try:
        return json.loads(text)
    except ValueError as error:
        example = '["a", "b"] or a,b' if is_list else '{"key": "value"}'
        raise SettingsError(f"the variable {name} is not JSON ({error}); write {example}") from error


def _given(error: ValidationError, where: str) -> str:
    """Returns: what stood there, behind the error's sentence; nothing for what is missing or secret."""
    fault = next((one for one in error.errors() if ".".join(map(str, one["loc"])).startswith(where)), None)
    if fault is None or fault["type"] in ("missing", "extra_forbidden") or where.rpartition(".")[2] in SECRET:
        return ""
    return (
        f" (got {str(fault['input'])[:100]!r})"
        if isinstance(fault["input"], str)
        else f" (got {fault['input']!r:.100})"
    )


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read settings file {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {file} is not TOML: {error}") from error


def _put(into: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(into.setdefault(key, {}), dict):
            return  # a file that says otherwise is refused for that
        into = into[key]
    into[path[-1]] = value
