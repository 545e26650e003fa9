"""The commands' side of the HTTP API: where it is, and what its answers mean. Blocking; for `shardnet generate` and `shardnet status`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from shardnet.errors import ShardnetError, UnreachableError, error_from_wire
from shardnet.swarm.addresses import read_coordinator_addresses
from shardnet.swarm.home import Home

DEFAULT_API = "http://127.0.0.1:8080"
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 600.0
"""Longer than any silence of a healthy coordinator, which sends a comment every 15 s."""


def find_api(given: str | None, environ: Mapping[str, str] | None = None, home: Path | None = None) -> str:
    """Returns: the API's base URL: what was given, else `$SHARDNET_API`, else what this machine's coordinator wrote, else the default."""
    environ = os.environ if environ is None else environ
    url = given or environ.get("SHARDNET_API")
    if not url:
        address = read_coordinator_addresses(Home(home)).api
        url = f"http://{address}" if address else DEFAULT_API
    if "://" not in url:
        url = f"http://{url}"
    return url.rstrip("/").removesuffix("/v1")


class ApiClient:
    """One command's use of the API. A context manager."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = url
        key = key or os.environ.get("SHARDNET_API__KEY")
        self._http = httpx.Client(
            base_url=url,
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=False,
        )

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        """Returns: the JSON of a path.

        Raises: UnreachableError if nobody answers; the coordinator's own error.
        """
        try:
            answer = self._http.get(path)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        if answer.status_code != httpx.codes.OK:
            raise _error_of(answer.content, answer.status_code, self._url)
        return _json(answer.content, self._url)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield each event of a streamed answer.

        Raises: UnreachableError if nobody answers, or the stream breaks; the coordinator's own error, also in the middle.
        """
        try:
            with self._http.stream("POST", path, json=body | {"stream": True}) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise _error_of(answer.read(), answer.status_code, self._url)
                for line in answer.iter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data: "):
                        event = _json(line.removeprefix("data: ").encode(), self._url)
                        if "error" in event:
                            raise _error_in(event["error"])
                        yield event
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        raise UnreachableError(f"the coordinator at {self._url} went away in the middle of its answer")

    def _unreachable(self, error: Exception) -> UnreachableError:
        if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.ReadTimeout):
            return UnreachableError(f"the coordinator at {self._url} went away in the middle of its answer: {error}")
        return UnreachableError(
            f"no coordinator answers at {self._url}: start one with `shardnet coordinator`, or name another with --api or $SHARDNET_API"
        )


def _json(content: bytes, url: str) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise UnreachableError(f"what answers at {url} is not a shardnet coordinator") from None


def _error_of(content: bytes, status: int, url: str) -> ShardnetError:
    try:
        return _error_in(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return UnreachableError(f"what answers at {url} (HTTP status {status}) is not a shardnet coordinator")


def _error_in(error: Any) -> ShardnetError:
    return error_from_wire(str(error.get("shardnet_code", "INTERNAL")), str(error["message"]))
