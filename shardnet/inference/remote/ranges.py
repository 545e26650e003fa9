"""Ranges of one file on a web server: redirects, retries, and the certainty that every range is of the same file.

A file is known by its size and by what the server gives to tell versions apart (ETag, Last-Modified). Each request says which version is wanted
(`If-Range`), so that a server with another one answers with that, whole, and is not mixed in.

Source: RFC 9110, sections 8.8 (validators), 13.1.5 (If-Range), 14 (ranges).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass

import httpx

from shardnet.errors import GgufError, PeerRefused, RefusedError, ShardnetError, UnreachableError, UsageError
from shardnet.inference.remote.address import TOKEN_VARIABLE, Address
from shardnet.lifecycle import Backoff

FIRST_PATIENCE_S, PATIENCE_S = 10.0, 120.0
"""How long nothing may come until we give up: before the first answer, when the address may be wrong, and later, when the server may restart."""
FIRST_BACKOFF_S = 0.5
MOST_WAIT_S = 30.0
"""Longest pause between attempts, whatever a `Retry-After` says."""
MOST_REDIRECTS = 10
MOST_EXPIRED = 3
"""How often in a row where we are sent may turn us away: links to a store of blobs are good for some minutes only."""
PROBE_BYTES = 64

FOR_NOW = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Answers after which it is worth asking again."""
MOST_DIGITS = 18
"""Of a number in an answer's head; no file is larger."""
_CONTENT_RANGE = re.compile(
    rf"^bytes (\d{{1,{MOST_DIGITS}}})-(\d{{1,{MOST_DIGITS}}})/(\d{{1,{MOST_DIGITS}}})$", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Version:
    """Which file it is, as far as the server tells: `size` in bytes; `etag` and `modified` as it sent them, "" if it did not."""

    size: int
    etag: str = ""
    modified: str = ""

    @property
    def condition(self) -> str:
        """Returns: the value of `If-Range`, "" if there is none; weak ETags are not allowed there."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def __str__(self) -> str:
        etag = f", ETag {self.etag}" if self.etag else ""
        return f"{self.size} bytes{etag}" + (f", changed {self.modified}" if self.modified else "")

    def change_to(self, other: Version) -> str:
        """Returns: in words what is different about another version, "" if nothing is."""
        for (what, mine), theirs in zip(asdict(self).items(), asdict(other).values(), strict=True):
            if mine != theirs:
                return f"{what} {mine or 'none'} before, {theirs or 'none'} now"
        return ""


class _ForNow(Exception):
    """This attempt failed; another may not. `wait_s` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _LinkExpired(Exception):
    """Where we were sent before, nobody lets us in any more: ask at the door again."""


class RemoteFile:
    """One file. All methods run on the loop of its client.

    Attributes:
        asked_bytes: bytes asked for, repeats included.
    """

    def __init__(
        self, address: Address, client: httpx.AsyncClient, *, token: str = "", patience_s: float = PATIENCE_S
    ) -> None:
        self.address = address
        self.version: Version | None = None
        self.asked_bytes = 0
        self._client = client
        self._token = token
        self._patience_s = patience_s
        self._at = address
        self._heard_s = time.monotonic()

    async def open(self) -> Version:
        """Ask for the file's first bytes. Returns: which file it is.

        Raises: UsageError if there is none; PeerRefused if we may not have it; GgufError if it is a web page; RefusedError if the server gives
            no ranges; UnreachableError.
        """
        start = await self.fetch(0, PROBE_BYTES)
        if start.lstrip().startswith(b"<"):
            raise self._is_a_page()
        assert self.version is not None
        return self.version

    async def fetch(self, start: int, end: int) -> bytes:
        """Returns: bytes `[start, end)`; fewer only of the first range, if the file is shorter.

        Raises: as `open`; GgufError if the file is another one than at the first range.
        """
        parts: list[bytes] = []
        at, expired, backoff = start, 0, Backoff(first_s=FIRST_BACKOFF_S, most_s=MOST_WAIT_S / 2)
        self._heard_s = time.monotonic()
        while at < end:
            before = at
            try:
                async with self._answer(at, end) as answer:
                    end = min(end, self.version.size if self.version else end)
                    async for piece in answer.aiter_raw():
                        parts.append(piece)
                        at += len(piece)
                        self._heard_s = time.monotonic()
                        backoff.reset()
                        expired = 0
                if at > end:
                    raise RefusedError(
                        f"{self.address.shown} cannot be read in pieces: its server sends more bytes than it says"
                    )
                if at == before:
                    raise _ForNow("its server sent nothing")
            except _LinkExpired as error:
                expired += 1
                if expired > MOST_EXPIRED:
                    raise self._not_ours(str(error)) from error
                self._at = self.address
            except (_ForNow, httpx.TransportError) as error:
                await self._pause(error, backoff)
        return b"".join(parts)

    async def _pause(self, error: Exception, backoff: Backoff) -> None:
        """Wait before the next attempt. Raises: UnreachableError if nothing came for too long."""
        if isinstance(error, httpx.ConnectError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise UnreachableError(f"{self.address.shown} is not trusted: {error}") from error
        patience_s = self._patience_s if self.version else min(FIRST_PATIENCE_S, self._patience_s)
        if time.monotonic() - self._heard_s >= patience_s:
            reason = str(error) or type(error).__name__
            raise UnreachableError(f"{self.address.shown} cannot be fetched: {reason}") from error
        wait_s = max(backoff.next_delay_s(), error.wait_s if isinstance(error, _ForNow) else 0.0)
        self._at = self.address  # where we were sent may be what is broken
        await asyncio.sleep(min(wait_s, MOST_WAIT_S, patience_s))

    @asynccontextmanager
    async def _answer(self, start: int, end: int) -> AsyncIterator[httpx.Response]:
        """Yield the answer to a request for a range, its head checked. Raises: what `_check` finds."""
        at = self._at  # another range may be sent elsewhere meanwhile
        for _ in range(MOST_REDIRECTS):
            self.asked_bytes += end - start
            response = await self._client.send(self._request(at, start, end), stream=True)
            try:
                if not response.has_redirect_location:
                    self._check(response, at, start, end)
                    self._at = at
                    yield response
                    return
            finally:
                await response.aclose()
            self.asked_bytes -= end - start
            at = at.redirected(response.headers["Location"])
        raise UnreachableError(f"{self.address.shown} leads on and on, {MOST_REDIRECTS} times: it is never there")

    def _request(self, at: Address, start: int, end: int) -> httpx.Request:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if self.version is not None and self.version.condition:
            headers["If-Range"] = self.version.condition
        if self._token and at.origin == self.address.origin:
            headers["Authorization"] = f"Bearer {self._token}"
        return self._client.build_request("GET", at.url, headers=headers)

    def _check(self, response: httpx.Response, at: Address, start: int, end: int) -> None:
        """Raises: whatever keeps the body from being the range of the file that was asked for."""
        status, shown = response.status_code, self.address.shown
        if status in FOR_NOW:
            raise _ForNow(f"its server answered {status}", _seconds(response.headers.get("Retry-After", "")))
        if status in (401, 403, 404, 410) and at != self.address:
            raise _LinkExpired(f"status {status} from {at.shown}")
        if status in (401, 403):
            raise self._not_ours(f"status {status}")
        if status in (404, 410):
            raise UsageError(f"there is no file at {shown} (status {status})")
        if status == 416 and self.version is None:
            raise GgufError(f"{shown} is not a GGUF: it is empty")
        if status == 416:
            raise self._changed("it became shorter")
        if status not in (200, 206):
            raise RefusedError(f"{shown} cannot be fetched: its server answered {status}")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise self._is_a_page()
        length = response.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() and len(length) <= MOST_DIGITS else 0
        if status == 200 and self.version is not None and self.version.condition:
            raise self._changed(self.version.change_to(_version(response, size)) or "its server sent the whole of it")
        if status == 200:
            raise RefusedError(
                f"{shown} cannot be read in pieces: its server does not answer ranges; download it, and split the file"
            )
        self._check_range(response, start, end)

    def _check_range(self, response: httpx.Response, start: int, end: int) -> None:
        found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if found is None or response.headers.get("Content-Encoding", "identity") != "identity":
            raise RefusedError(
                f"{self.address.shown} cannot be read in pieces: its server does not say which bytes it sends, or packs them"
            )
        first, last, size = map(int, found.groups())
        version = _version(response, size)
        if self.version is None:
            self.version = version
        elif change := self.version.change_to(version):
            raise self._changed(change)
        if (
            first != start or not first <= last < end
        ):  # it may send fewer than were asked for, and is asked for the others then
            raise RefusedError(
                f"{self.address.shown} cannot be read in pieces: its server sent bytes {first}-{last} where {start}-{end - 1} were asked for"
            )

    def _not_ours(self, how: str) -> PeerRefused:
        tried = "does not take this token" if self._token else "wants to know who asks"
        return PeerRefused(
            f"{self.address.shown} is not given to us ({how}): its server {tried}; set ${TOKEN_VARIABLE}"
        )

    def _changed(self, how: str) -> ShardnetError:
        return GgufError(
            f"{self.address.shown} changed while it was read ({how}): what was cut of it is of no use; split it again from the beginning"
        )

    def _is_a_page(self) -> GgufError:
        return GgufError(
            f"{self.address.shown} is a web page, not a GGUF: take the address that the page's download button leads to"
        )


def _version(response: httpx.Response, size: int) -> Version:
    return Version(size, response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))


def _seconds(text: str) -> float:
    """Returns: a `Retry-After` in seconds; 0 for a date, which no server was seen to send with these answers."""
    return float(text) if text.isdecimal() else 0.0
