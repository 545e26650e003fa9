"""The callers' side of the HTTP API: where it is, and what its answers mean. For the commands, which block, and for the library, which need not."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Generator, Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from shardnet.errors import LOADING, ShardnetError, UnreachableError, UsageError, error_from_wire
from shardnet.swarm.addresses import read_coordinator_addresses
from shardnet.swarm.home import Home
from shardnet.web_hosts import has_host

DEFAULT_API = "http://127.0.0.1:8080"
CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 600.0
"""Longer than any silence of a healthy coordinator, which sends a comment every 15 s."""
EVENT, DONE = "data: ", "data: [DONE]"
"""How the lines of a stream begin that say something, and the last one."""
AS_JSON = {"Content-Type": "application/json"}


def find_api(given: str | None, environ: Mapping[str, str] | None = None, home: Path | None = None) -> str:
    """Returns: the API's base URL: what was given, else `$SHARDNET_API`, else what this machine's coordinator wrote, else the default.

    Raises: UsageError if it is no address of a web server.
    """
    environ = os.environ if environ is None else environ
    url = given or environ.get("SHARDNET_API")
    if not url:
        address = read_coordinator_addresses(Home(home)).api
        url = f"http://{address}" if address else DEFAULT_API
    if "://" not in url:
        url = f"http://{url}"
    _check_address(url, "--api" if given else "$SHARDNET_API")
    return url.rstrip("/").removesuffix("/v1")


def _check_address(url: str, source: str) -> None:
    example = f"write http://HOST:PORT, as in {DEFAULT_API}"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"{source} {url!r} is no address ({error}): {example}") from None
    if parsed.scheme not in ("http", "https"):
        raise UsageError(f"{source} {url!r}: the API is not reached by {parsed.scheme}: {example}")
    if parsed.port is not None and not 0 < parsed.port <= 65_535:
        raise UsageError(f"{source} {url!r}: there is no port {parsed.port}: {example}")
    if not parsed.host:
        raise UsageError(f"{source} {url!r} names no host: {example}")


def _http_options(url: str, key: str | None) -> dict[str, Any]:
    """Raises: UsageError for an address or a key that could not be sent to."""
    try:
        is_usable = url.lower().startswith(("http://", "https://")) and has_host(url)
    except ValueError as error:
        raise UsageError(f"{url} is no usable address of the HTTP API: {error}") from error
    if not is_usable:
        raise UsageError(f"{url} is no usable address of the HTTP API: write {DEFAULT_API}")
    key = key or os.environ.get("SHARDNET_API__KEY")
    if key and not (key.isascii() and key.isprintable()):
        raise UsageError(
            "the key of the HTTP API holds characters that no key has: is it what `shardnet key add` printed?"
        )
    return {
        "base_url": url,
        "timeout": httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "trust_env": False,
    }


class ApiClient:
    """One user's or command's use of the API. A context manager.

    Args:
        headers: sent with every request.
    """

    def __init__(self, url: str, key: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.url = url
        self._http = httpx.Client(**_http_options(url, key))
        self._http.headers.update(headers or {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def get(self, path: str) -> Any:
        """Returns: the JSON of a path.

        Raises: UnreachableError if nobody answers; the coordinator's own error.
        """
        try:
            answer = self._http.get(path)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unreachable(error, self.url) from error
        return _json_of(answer, self.url)

    def stream(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Yield each event of a streamed answer. Closed early, it frees the request's place on every node.

        Raises: UsageError for what JSON cannot carry; UnreachableError if nobody answers, or the stream breaks; the coordinator's own error, also in
            the middle.
        """
        yield from self._events("POST", path, content=_streamed(body), headers=AS_JSON)

    def follow(self, path: str, params: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Yield each event of a path that is a stream. Raises: as `stream`."""
        yield from self._events("GET", path, params=params)

    def _events(self, method: str, path: str, **request: Any) -> Generator[dict[str, Any], None, None]:
        try:
            with self._http.stream(method, path, **request) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise _error_of(answer.read(), answer.status_code, self.url)
                for line in answer.iter_lines():
                    if line == DONE:
                        return
                    if (event := _event_in(line, self.url)) is not None:
                        yield event
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unreachable(error, self.url) from error
        raise _went_away(self.url)


class AsyncApiClient:
    """The same for an event loop. An asynchronous context manager."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        self._http = httpx.AsyncClient(**_http_options(url, key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def get(self, path: str) -> Any:
        """Returns: the JSON of a path. Raises: as `ApiClient.get`."""
        try:
            answer = await self._http.get(path)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise await asyncio.to_thread(_unreachable, error, self.url) from error
        return _json_of(answer, self.url)

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield each event of a streamed answer. Raises: as `ApiClient.stream`."""
        try:
            async with self._http.stream("POST", path, content=_streamed(body), headers=AS_JSON) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise _error_of(await answer.aread(), answer.status_code, self.url)
                async for line in answer.aiter_lines():
                    if line == DONE:
                        return
                    if (event := _event_in(line, self.url)) is not None:
                        yield event
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise await asyncio.to_thread(_unreachable, error, self.url) from error
        raise _went_away(self.url)


def _streamed(body: dict[str, Any]) -> bytes:
    """Returns: a request for a stream, as it is sent. Raises: UsageError naming the field that JSON cannot carry."""
    sent = {}
    for name, value in (body | {"stream": True}).items():
        try:
            sent[name] = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise UsageError(f"{name}: is no text in UTF-8") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"{name}: cannot be sent as JSON: {error}") from None
    return b"{" + b", ".join(json.dumps(name).encode() + b": " + value for name, value in sent.items()) + b"}"


def _event_in(line: str, url: str) -> dict[str, Any] | None:
    """Returns: what a line of a stream says; None for a comment or an empty one. Raises: the coordinator's own error."""
    if not line.startswith(EVENT):
        return None
    event: dict[str, Any] = _json(line.removeprefix(EVENT).encode(), url)
    if "error" in event:
        raise _error_in(event["error"])
    return event


def _unreachable(error: Exception, url: str) -> UnreachableError:
    """Returns: what is wrong. Blocks for a moment where the other end may want TLS."""
    if isinstance(error, httpx.ConnectError) and "SSL" in str(error):
        return UnreachableError(
            f"what answers at {url} cannot be reached by TLS ({error}): the coordinator's API speaks HTTP, so write http:// unless something in "
            "front of it has a certificate that this machine trusts"
        )
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError) and _speaks_tls(url):
        return UnreachableError(
            f"what answers at {url} wants TLS and is not the HTTP API: nodes and newcomers have ports of their own; "
            "the coordinator says at its start which one is the API's (8080 if nothing else was asked for)"
        )
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.ReadTimeout):
        return _went_away(url, f": {error}")
    return UnreachableError(
        f"no coordinator answers at {url}: start one with `shardnet coordinator`, or name another with --api or $SHARDNET_API"
    )


def _speaks_tls(url: str) -> bool:
    """True if a TLS handshake is answered there, whoever it is and whatever comes of it."""
    parsed = httpx.URL(url)
    if parsed.scheme != "http":
        return False
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((parsed.host, parsed.port or 80), PROBE_TIMEOUT_S) as raw,
            context.wrap_socket(raw),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in str(error).upper()
    except OSError:
        return False


def _went_away(url: str, why: str = "") -> UnreachableError:
    return UnreachableError(f"the coordinator at {url} went away in the middle of its answer{why}")


def _json_of(answer: httpx.Response, url: str) -> Any:
    if answer.status_code != httpx.codes.OK:
        raise _error_of(answer.content, answer.status_code, url)
    return _json(answer.content, url)


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
    facts = {f"{LOADING}{name}": fact for name, fact in (error.get("loading") or {}).items()}
    return error_from_wire(str(error.get("shardnet_code", "INTERNAL")), str(error["message"]), facts)
