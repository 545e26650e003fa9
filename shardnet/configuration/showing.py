"""Settings as people and programs read them: what each value is, where it was said, and what it comes to; and a settings file of all defaults.

What is printed as TOML is TOML: it can be put into a file. Secrets are told from nothing but whether they are set.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardnet.errors import printable
from shardnet.settings import Key, Origin, Section, keys_of, value_at

HIDDEN = "(hidden)"
WIDTH = 100
"""Characters of a line of comment in a settings file."""


@dataclass(frozen=True, slots=True)
class Row:
    """One setting. `comes_to`: what its value means here and now, where it does not say so itself."""

    key: Key
    value: Any
    origin: Origin
    comes_to: str = ""

    @property
    def is_changed(self) -> bool:
        """True if it is not at its default."""
        return bool(self.value != self.key.default)

    def facts(self) -> dict[str, Any]:
        """Returns: the row for programs."""
        shown = HIDDEN if self.key.is_secret and self.value else self.value
        return {
            "key": self.key.path,
            "value": _plain(shown),
            "default": _plain(self.key.default),
            "source": self.origin.source,
            "where": self.origin.where or None,
            "comes_to": self.comes_to or None,
            "variable": self.key.variable,
        }


def rows_of(settings: Section, origins: Mapping[str, Origin], comes_to: Mapping[str, str]) -> list[Row]:
    """Returns: every setting, in the order of its sections."""
    return [
        Row(key, value_at(settings, path), _origin_of(path, origins), comes_to.get(path, ""))
        for path, key in keys_of(type(settings)).items()
    ]


def as_toml(rows: Iterable[Row]) -> str:
    """Returns: the rows as a settings file, each with where it was said behind it. What is not set, or secret, is a comment."""
    lines: list[tuple[str, str]] = []
    section = ""
    for row in rows:
        here, _, name = row.key.path.rpartition(".")
        if here != section:
            lines += [("", ""), (f"[{here}]", "")]
            section = here
        said = str(row.origin)
        remark = f"{said}; comes to {row.comes_to}" if row.comes_to else said
        lines.append((_assignment(row, name), printable(remark)))
    width = min(44, max((len(text) for text, remark in lines if remark), default=0))
    return "\n".join(f"{text:<{width}}  # {remark}" if remark else text for text, remark in lines).strip("\n")


def defaults_as_toml(kind: type[Section], command: str) -> str:
    """Returns: a settings file that changes nothing: every key with its default, and what it is for before it."""
    lines = [
        f"# Every setting of `shardnet {command}`, with its default: `shardnet {command} --config FILE` reads this file.",
        "# A key that begins with # has no value unless one is given. The environment comes after this file, flags come last.",
    ]
    section = ""
    for path, key in keys_of(kind).items():
        here, _, name = path.rpartition(".")
        if here != section:
            lines += ["", f"[{here}]"]
            section = here
        lines += textwrap.wrap(str(key.field.description), WIDTH, initial_indent="# ", subsequent_indent="# ")
        lines.append(_assignment(Row(key, key.default, Origin()), name))
    return "\n".join(lines)


def toml_of(value: Any) -> str:
    """Returns: a value as TOML writes it."""
    value = _plain(value)
    if isinstance(value, list):
        return f"[{', '.join(map(toml_of, value))}]"
    if isinstance(value, str):
        return printable(json.dumps(value, ensure_ascii=False))
    return json.dumps(value)


def _assignment(row: Row, name: str) -> str:
    if row.value is None:
        return f"# {name} ="
    if row.key.is_secret and row.value:
        return f"# {name} = {HIDDEN}"
    return f"{name} = {toml_of(row.value)}"


def _plain(value: Any) -> Any:
    """Returns: a value as JSON has it."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _origin_of(path: str, origins: Mapping[str, Origin]) -> Origin:
    """Returns: where a key, or what it is in, was said."""
    parts = path.split(".")
    places = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((origins[place] for place in places if place in origins), Origin())
