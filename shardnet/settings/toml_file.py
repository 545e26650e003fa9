"""A settings file: its values, and on which line each stands, which Python's parser does not tell.

Knows TOML. Refuses to know which keys there should be.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardnet.errors import SettingsError

MAX_BYTES = 1 << 20
"""Far above any file that people write; Python's parser needs seconds for one of 10 MB."""

_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_SAID = (
    (r"Invalid value", "what follows the = is no value of TOML: a text stands in quotes, a list in brackets"),
    (r"Cannot overwrite a value|Cannot mutate", "a key or a section stands here for the second time"),
    (r"Cannot declare .* twice|Cannot define", "this section was there before"),
    (r"Expected '=' after a key", "a = is missing behind the key"),
    (r"Expected newline or end of document", "something follows the value on its line; a text stands in quotes"),
    (r"Unterminated|Illegal character '\\n'|Expected [\"'`]+$", "a text, or a list, does not end"),
    (r"Expected '\]' at the end", "the ] behind the name of a section is missing"),
    (r"Unclosed (array|inline table)", "a list or a table does not end"),
    (r"Invalid initial character for a key part", "a key has another character than letters, digits, _ and -"),
    (r"Invalid statement", "this is neither a [section] nor a key = value"),
    (r"escap", "a text has a backslash sequence that TOML does not know: write \\\\, or the text in single quotes"),
    (r"Illegal character", "a character stands here that TOML does not take"),
)
"""What `tomllib` says -> our words."""

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|\#[^\n]*|[\[\]{}=\n.]|[^\s\[\]{}=."\'\#]+',
    re.S,
)
"""Texts of the four kinds, comments, what structures a file, and words. Source: toml.io, version 1.0."""


@dataclass(frozen=True, slots=True)
class TomlFile:
    """What a file says.

    Attributes:
        lines: `section.key` -> its line, from 1; sections have the line of their header.
    """

    path: Path
    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)

    def where(self, place: str) -> str:
        """Returns: `file:line` of a key, or of what it is in; the file alone where that is not known."""
        parts = place.split(".")
        for n in range(len(parts), 0, -1):
            if (line := self.lines.get(".".join(parts[:n]))) is not None:
                return f"{self.path}:{line}"
        return str(self.path)


def read_toml(path: Path) -> TomlFile:
    """Raises: SettingsError, with the line where that is known."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise SettingsError(f"cannot read settings file {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_BYTES:
        raise SettingsError(f"settings file {path} is larger than {MAX_BYTES >> 20} MiB: is it one?")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingsError(
            f"settings file {path}:{line} is not UTF-8 (byte 0x{data[error.start]:02x}): save it as UTF-8"
        ) from error
    try:
        return TomlFile(path, tomllib.loads(text), lines_of(text))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(_not_toml(path, str(error))) from error
    except RecursionError as error:
        raise SettingsError(f"settings file {path} is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise SettingsError(f"settings file {path} holds a number that is too long, or a date that is none") from error


def _not_toml(path: Path, told: str) -> str:
    place = _AT.search(told)
    line = f":{place[1]}" if place and place[1] else ""
    column = f", column {place[2]}" if place and place[2] else ", at its end" if place else ""
    told = _AT.sub("", told)
    words = next((words for pattern, words in _SAID if re.search(pattern, told)), told)
    return f"settings file {path}{line}{column} is not TOML: {words}"


def lines_of(text: str) -> dict[str, int]:
    """Returns: `section.key` -> line, of a text that is TOML. Keys within inline tables are not there: what they are in is."""
    found: dict[str, int] = {}
    header: list[str] = []
    words: list[str] = []  # of the key or the header that is being read
    depth, is_value, is_header, line = 0, False, False, 1
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "\n":
            line += 1
            if not depth:
                if is_header:
                    header = words
                    found.setdefault(".".join(header), line - 1)
                words, is_value, is_header = [], False, False
        elif is_value:
            depth += (token in "[{") - (token in "]}")
            line += token.count("\n")
        elif token == "=":
            is_value = True
            found.setdefault(".".join([*header, *words]), line)
        elif token == "[":
            is_header = True
        elif token not in "]." and not token.startswith("#"):
            words.append(_word(token))
    if is_header:
        found.setdefault(".".join(words), line)
    return found


def _word(token: str) -> str:
    """Returns: one part of a key, its quotes read."""
    return str(next(iter(tomllib.loads(f"{token} = 0")))) if token[0] in "\"'" else token
