"""A client's JSON becomes one of our requests. Large bodies are read in a thread, such that the event loop goes on meanwhile.

A thread alone would not do: a parser in C keeps the interpreter's lock from the first byte to the last, 300 ms for the worst body of 4 MB. So large
ones are read by the standard library's parser in Python, which gives the lock away as any Python code does; single strings, which are most of a large
body that somebody means, are read in C there too. What takes long without being a text is bounded: objects and lists, and how deep they are in one
another.

Refuses to know HTTP and the requests' fields.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shardnet.coordinator.api.schemas import usage_error
from shardnet.errors import UsageError

AT_ONCE = 1 << 16
"""Bytes; so many take a millisecond at most."""
MAX_CONTAINERS = 50_000
MAX_DEPTH = 200
"""As many as pydantic's own parser takes."""

R = TypeVar("R", bound=BaseModel)


async def read_body(body: bytes, kind: type[R]) -> R:
    """Returns: the request. Raises: UsageError in words of ours."""
    if len(body) <= AT_ONCE:
        return _valid(kind.model_validate_json, body)
    return await asyncio.to_thread(_read, body, kind)


def _valid(validate: Callable[[Any], R], given: Any) -> R:
    try:
        return validate(given)
    except ValidationError as error:
        raise usage_error(error) from None


def _read(body: bytes, kind: type[R]) -> R:
    return _valid(kind.model_validate, _Decoder().read(body))


class _Decoder(json.JSONDecoder):
    """Reads one body. Raises: UsageError."""

    parse_object: Callable[..., tuple[dict[str, Any], int]]
    parse_array: Callable[..., tuple[list[Any], int]]
    parse_string: Callable[..., tuple[str, int]]

    def __init__(self) -> None:
        super().__init__()
        self._left, self._depth = MAX_CONTAINERS, 0
        self.parse_object = self._counted(self.parse_object)
        self.parse_array = self._counted(self.parse_array)
        self.parse_string = _checked(self.parse_string)
        self.scan_once = py_make_scanner(self)

    def _counted(self, parse: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self._left -= 1
            self._depth += 1
            if self._left < 0 or self._depth > MAX_DEPTH:
                raise UsageError(
                    f"the body has more than {MAX_CONTAINERS} objects and lists, or {MAX_DEPTH} within one another"
                )
            found, end = parse(*arguments)
            self._depth -= 1
            if isinstance(found, dict):
                for key in found:
                    _check_characters(key)
            return found, end

        return counted

    def read(self, body: bytes) -> Any:
        """Returns: what the body says."""
        try:
            return self.decode(body.decode())
        except UnicodeDecodeError:
            raise UsageError("the body is not JSON: it is not valid UTF-8") from None
        except ValueError as error:
            raise UsageError(f"the body is not JSON: {error}") from None


def _checked(parse: Callable[..., tuple[str, int]]) -> Callable[..., tuple[str, int]]:
    def checked(*arguments: Any) -> tuple[str, int]:
        found, end = parse(*arguments)
        _check_characters(found)
        return found, end

    return checked


def _check_characters(text: str) -> None:
    """Raises: UsageError for half a surrogate pair, which cannot be passed on."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError("the body is not JSON: a text has half a surrogate pair (\\ud800 to \\udfff)") from None
