"""Texts that a command reads because a flag names them: each failure is one sentence with the flag."""

from __future__ import annotations

import json
import sys
from typing import Any

from shardnet.errors import UsageError
from shardnet.files import text_of


def json_of(given: str, flag: str) -> Any:
    """Returns: JSON that stands there, if it begins with a brace; else that of the file with this name. Raises: UsageError."""
    is_here = given.lstrip().startswith("{")
    text = given if is_here else text_of(given, flag)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{flag}{'' if is_here else f' {given}'} is not JSON ({where}): {error.msg}") from None
    except RecursionError:
        raise UsageError(f"{flag} is nested too deeply") from None


def check_text(given: str | None, what: str) -> None:
    """Raises: UsageError for bytes of the command line that are no text."""
    if given is not None and any("\ud800" <= char <= "\udfff" for char in given):
        raise UsageError(f"{what} is no text in UTF-8")


def standard_input() -> str:
    """Returns: all of it. Raises: UsageError if it is no text."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise UsageError("what came from standard input is no text in UTF-8") from None
