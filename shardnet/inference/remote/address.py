"""Addresses of files on web servers, and who may be given the token. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from shardnet.errors import SettingsError, UnreachableError, UsageError
from shardnet.web_hosts import has_host

TOKEN_VARIABLE = "SHARDNET_HTTP_TOKEN"


def is_url(source: str) -> bool:
    """Returns: whether a model is named by an http or https address."""
    return source.lower().startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class Address:
    """Where a file is. `shown` is what people see and what is remembered: the query may hold a signature, so it is in neither."""

    url: str

    @property
    def shown(self) -> str:
        """Returns: the address without query."""
        return urlunsplit(urlsplit(self.url)._replace(query="", fragment=""))

    @property
    def origin(self) -> tuple[str, str, int]:
        """Returns: scheme, host and port: what a token is good for."""
        parts = urlsplit(self.url)
        return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def name(self) -> str:
        """Returns: the file's name."""
        return unquote(urlsplit(self.url).path.rsplit("/", 1)[-1]).replace("/", "_").replace("\0", "_")

    @property
    def key(self) -> str:
        """Returns: twelve hex digits that stand for the address in names of folders."""
        return hashlib.sha256(self.shown.encode()).hexdigest()[:12]

    def beside(self, name: str) -> Address:
        """Returns: the address of another file in the same folder, asked for with the same query."""
        parts = urlsplit(self.url)
        folder = parts.path.rsplit("/", 1)[0]
        return Address(urlunsplit(parts._replace(path=f"{folder}/{quote(name)}")))

    def redirected(self, location: str) -> Address:
        """Returns: where an answer sends us. Raises: UnreachableError if that is no place to fetch from."""
        try:
            there = Address(urljoin(self.url, location))
            is_somewhere = is_url(there.url) and has_host(there.url)
        except ValueError as error:
            raise UnreachableError(f"{self.shown} leads to no usable address: {error}") from error
        if not is_somewhere:
            raise UnreachableError(f"{self.shown} leads to {there.shown}, which is no http or https address")
        if self.origin[0] == "https" and there.origin[0] == "http":
            raise UnreachableError(f"{self.shown} leads from https to plain http ({there.shown}): that is not followed")
        return there


def parse_address(url: str) -> Address:
    """Raises: UsageError if a URL names no file, or holds a password."""
    try:
        parts, is_somewhere = urlsplit(url), has_host(url)
    except ValueError as error:
        raise UsageError(f"{url} is no usable address: {error}") from error
    if not is_url(url) or not is_somewhere or not url.isprintable() or " " in url:
        raise UsageError(f"{url!r} is no usable http or https address")
    if "@" in parts.netloc:
        raise UsageError(f"a password in an address is not taken: leave it out, and put a token into ${TOKEN_VARIABLE}")
    address = Address(urlunsplit(parts._replace(scheme=parts.scheme.lower(), fragment="")))
    if address.name in ("", ".", ".."):
        raise UsageError(f"{address.shown} names no file: give the address of the model's GGUF")
    return address


def token_for(address: Address, environ: Mapping[str, str]) -> str:
    """Returns: the token of the environment, "" if there is none.

    Raises: SettingsError if it could not be sent, or would travel over other machines unencrypted.
    """
    token = environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        return ""
    if not token.isascii() or not token.isprintable() or " " in token:
        raise SettingsError(f"${TOKEN_VARIABLE} holds characters that no token has")
    scheme, host, _port = address.origin
    if scheme == "http" and not _is_this_machine(host):
        raise SettingsError(f"${TOKEN_VARIABLE} would go to {host} unencrypted: use https, or unset it")
    return token


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
