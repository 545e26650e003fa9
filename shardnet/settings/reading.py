"""The loader: defaults < TOML file < environment < command line, where each value was said, and everything that is wrong with them.

The daemons and `shardnet config` read by these functions, so that what one shows is what the other takes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from shardnet.errors import SettingsError
from shardnet.faults import all_faults
from shardnet.settings.environment import nearest, unread, variables
from shardnet.settings.section import Section, keys_of, sections_of
from shardnet.settings.toml_file import TomlFile, read_toml

S = TypeVar("S", bound=Section)
MOST_MEANT = 3
"""Keys that a wrong one is asked to have meant."""
LONGEST_SHOWN = 300
"""Characters of a wrong value, or of what is wrong with it, that an error repeats."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was said. `where`: the file and its line, the name of the variable or of the flag; nothing for a default."""

    source: Literal["default", "file", "environment", "command line"] = "default"
    where: str = ""

    def __str__(self) -> str:
        return self.where or self.source


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that no daemon starts with. `key`: `section.key`; nothing where it concerns a file or a variable as a whole."""

    sentence: str
    key: str = ""
    origin: Origin = Origin()


@dataclass(frozen=True, slots=True)
class Reading(Generic[S]):
    """What was read.

    Attributes:
        settings: None where there are faults.
        origins: of each key that is not at its default.
        rest: what remains of the settings without what is wrong.
        unread: sentences about variables that look like settings and are none.
    """

    settings: S | None
    origins: Mapping[str, Origin]
    faults: tuple[Fault, ...] = ()
    rest: S | None = None
    unread: tuple[str, ...] = ()


def load_settings(
    kind: type[S],
    *,
    file: Path | None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    others: Iterable[type[Section]] = (),
) -> S:
    """Read one daemon's settings; arguments as in `read_settings`.

    Raises: SettingsError naming the file or variable, the key and what is wrong with it.
    """
    return whole(read_settings(kind, file=file, flags=flags, environ=environ, others=others))


def whole(reading: Reading[S]) -> S:
    """Returns: the settings. Raises: SettingsError for the first fault."""
    if reading.settings is None:
        more = len(reading.faults) - 1
        rest = f" ({more} more: `shardnet config check` tells all)" if more else ""
        raise SettingsError(f"{reading.faults[0].sentence}{rest}")
    return reading.settings


def read_settings(
    kind: type[S],
    *,
    file: Path | None,
    flags: Mapping[str, Any] | None = None,
    flag_names: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    others: Iterable[type[Section]] = (),
) -> Reading[S]:
    """Read one daemon's settings.

    Args:
        file: a TOML file, or None for defaults.
        flags: `{"section.key": value}` or `{"key": value}`; None values are flags that were not given.
        flag_names: `{"section.key": "--flag"}`, for what is told.
        environ: the environment, `os.environ` by default.
        others: the settings of other daemons: their variables are no mistakes, and their keys are told from misspelt ones.
    """
    environ, others = os.environ if environ is None else environ, tuple(others)
    said = _Said(kind, others)
    if file is not None:
        try:
            said.put_file(read_toml(file))
        except SettingsError as error:
            said.faults.append(Fault(str(error), origin=Origin("file", str(file))))
    for one in variables(kind, environ, others):
        if isinstance(one, SettingsError):
            said.faults.append(Fault(str(one), origin=Origin("environment")))
        else:
            said.put(one.path, one.value, Origin("environment", one.name))
    for key, value in (flags or {}).items():
        if value is not None:
            said.put(key, value, Origin("command line", (flag_names or {}).get(key, "")))
    settings = said.validate()
    return Reading(
        settings=None if said.faults else settings,
        origins=said.origins,
        faults=tuple(said.faults),
        rest=settings,
        unread=tuple(unread(environ, (kind, *others))),
    )


@dataclass(slots=True)
class _Said(Generic[S]):
    """What all sources said so far, merged."""

    kind: type[S]
    others: tuple[type[Section], ...]
    merged: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def put_file(self, file: TomlFile) -> None:
        """Take a file's values as the first ones."""
        self.merged = file.values
        for path in _leaf_paths(file.values, set(sections_of(self.kind))):
            self.origins[path] = Origin("file", file.where(path))

    def put(self, path: str, value: Any, origin: Origin) -> None:
        """Take a value in place of what was said before."""
        into, *_ = tables = [self.merged]
        *outer, key = path.split(".")
        for name in outer:
            into = tables[-1].setdefault(name, {})
            if not isinstance(into, dict):
                return  # a file that says otherwise is refused for that
            tables.append(into)
        into = tables[-1]
        into[key] = value
        self.origins[path] = origin

    def validate(self) -> S | None:
        """Returns: the settings; of what is left of them, where there are faults, which are noted.

        What is wrong is left out and the rest looked at again, for a section is looked at as a whole only once each of its keys is right.
        """
        left = _copy(self.merged)
        while True:
            try:
                return self.kind.model_validate(left)
            except ValidationError as error:
                found = all_faults(error)
            for place, words, given in found:
                self.faults.append(self._fault(place, words, given))
            if sum(_take_out(left, place) for place, *_ in found) == 0:
                return None

    def _fault(self, place: str, words: str, given: Any) -> Fault:
        if place in sections_of(self.kind) and not isinstance(given, dict):
            words = f"is a section: write [{place}], and its keys in lines below"
        key = next((key for key in keys_of(self.kind).values() if f"{place}.".startswith(f"{key.path}.")), None)
        origin = self._origin(place, words)
        source = "" if origin.source == "default" else f" in {origin}"
        if words == "is not known":
            return Fault(
                f"setting {shortened(repr(place))}{source} is not known{self._meant(place, given)}", place, origin
            )
        shown = ""
        if key is not None and not key.is_secret and not _is_told(given, words):
            shown = f" (got {_short(given)})"
        return Fault(f"setting {place!r}{source} {shortened(words)}{shown}", place, origin)

    def _origin(self, place: str, words: str) -> Origin:
        """Returns: where that, or what it is in, was said; of a section that is wrong as a whole, the key that the fault speaks of."""
        parts = place.split(".")
        for n in range(len(parts), 0, -1):
            if (origin := self.origins.get(".".join(parts[:n]))) is not None:
                return origin
        within = [(path, origin) for path, origin in self.origins.items() if path.startswith(f"{place}.") or not place]
        named = [origin for path, origin in within if path.rpartition(".")[2] in words]
        return next(iter(reversed(named or [origin for _, origin in within])), Origin())

    def _meant(self, place: str, given: Any) -> str:
        """Returns: which key was meant perhaps, behind a sentence: one of that name elsewhere, one of another daemon, one that is written alike."""
        ours = (*keys_of(self.kind), *sections_of(self.kind))
        if any(place in (sections_of if isinstance(given, dict) else keys_of)(other) for other in self.others):
            return " here: it is a setting of another daemon"
        section, _, name = place.rpartition(".")
        elsewhere = [path for path in ours if path.rpartition(".")[2] == name]
        siblings = {path.rpartition(".")[2]: path for path in ours if path.rpartition(".")[0] == section}
        if 0 < len(elsewhere) <= MOST_MEANT:
            return f": did you mean {' or '.join(elsewhere)}?"
        return nearest(name, siblings) or nearest(place, {path: path for path in keys_of(self.kind)})


def _leaf_paths(values: dict[str, Any], sections: set[str], prefix: str = "") -> list[str]:
    """Returns: the places of all values; a table where no section is counts as one."""
    found: list[str] = []
    for name, value in values.items():
        path = prefix + name
        inside = isinstance(value, dict) and path in sections
        found += _leaf_paths(value, sections, f"{path}.") if inside else [path]
    return found


def _take_out(values: dict[str, Any], place: str) -> bool:
    """Returns: whether what stands at a place, or what it is in, was there to be taken out."""
    parts = place.split(".")
    for n, name in enumerate(parts):
        if name not in values:
            return False
        inner = values[name]
        if n == len(parts) - 1 or not isinstance(inner, dict):
            del values[name]
            return True
        values = inner
    return False


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _copy(value) if isinstance(value, dict) else value for name, value in values.items()}


def _is_told(given: Any, words: str) -> bool:
    return any(
        isinstance(one, str) and repr(one) in words for one in (given if isinstance(given, list | tuple) else (given,))
    )


def _short(given: Any) -> str:
    try:
        shown = str(given).lower() if isinstance(given, bool) else repr(given)
    except ValueError:  # a number of thousands of digits
        shown = "a number of thousands of digits"
    return shortened(shown)


def shortened(text: str) -> str:
    """Returns: a text that may repeat what somebody wrote, its middle left out where it is long."""
    half = LONGEST_SHOWN // 2
    return text if len(text) <= LONGEST_SHOWN else f"{text[:half]} [...] {text[-half:]}"
