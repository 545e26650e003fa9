"""Keys of the HTTP API: who may use it, each by a name, so that one can be taken away without the others noticing.

At rest stands a key's SHA-256 alone: a key has 256 random bits, so that a slow hash would add nothing. Refuses to know HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping

from pydantic import Field, TypeAdapter

from shardnet.errors import UsageError
from shardnet.ids import Sha256
from shardnet.shards import Frozen
from shardnet.swarm.home import Home, load_records, write_records
from shardnet.swarm.records import NAME_PATTERN

PREFIX = "sk-shardnet-"
"""Scanners of published code look for such beginnings; clients that check a key's shape want `sk-`."""
KEY_BYTES = 32


class ApiKey(Frozen):
    """One key that was made."""

    sha256: Sha256
    made_at_s: float = Field(description="Unix time")
    may_invite: bool = Field(default=False, description="its owner may make join tokens over the HTTP API")
    metrics_only: bool = Field(
        default=False, exclude_if=lambda value: not value, description="it opens /metrics and nothing else"
    )


ApiKeys = dict[str, ApiKey]
API_KEYS: TypeAdapter[ApiKeys] = TypeAdapter(ApiKeys)


def list_keys(home: Home) -> ApiKeys | None:
    """Returns: name -> key; None if none was ever made, so that none is asked for. Raises: SettingsError if the file is damaged."""
    try:
        return load_records(home.api_keys, API_KEYS)
    except FileNotFoundError:
        return None


def make_key(home: Home, name: str, *, may_invite: bool = False, metrics_only: bool = False) -> str:
    """Returns: a new key, which nobody can be told again. Raises: UsageError for a name that is taken, or is none.

    Args:
        may_invite: whoever has it may let machines into the swarm too, not only ask its models.
        metrics_only: it opens /metrics and nothing else.
    """
    if may_invite and metrics_only:
        raise UsageError("a key for /metrics alone cannot invite: choose one of --may-invite and --metrics-only")
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"{name[:100]!r} is no name for a key: use up to 63 letters, digits, '.', '_' and '-'")
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    with home.locked():
        known = list_keys(home) or {}
        if name in known:
            raise UsageError(
                f"there is a key named {name} already: choose another name, or `shardnet key remove {name}`"
            )
        home.swarm.mkdir(mode=0o700, exist_ok=True)
        made = ApiKey(sha256=_digest(key), made_at_s=time.time(), may_invite=may_invite, metrics_only=metrics_only)
        write_records(home.api_keys, API_KEYS, known | {name: made})
    return key


def remove_key(home: Home, name: str) -> int:
    """Take a key away. Returns: how many are left. Raises: UsageError if there is none of that name."""
    with home.locked():
        known = list_keys(home) or {}
        if name not in known:
            raise UsageError(f"there is no key named {name[:100]!r}; there are: {', '.join(sorted(known)) or 'none'}")
        del known[name]
        write_records(home.api_keys, API_KEYS, known)
    return len(known)


class KeyRing:
    """The keys that a coordinator takes now.

    Args: fixed: one that stands in its settings, known as `api.key`; empty for none.
    """

    def __init__(self, fixed: str = "") -> None:
        self._fixed = {"api.key": _digest(fixed)} if fixed else {}
        self._named: dict[str, str] | None = None
        self._inviting: frozenset[str] = frozenset()
        self._of_scrapers: dict[str, str] = {}

    def set_named(self, keys: ApiKeys | None) -> None:
        """Those that were made by `shardnet key`; None if there never was one."""
        named = keys or {}
        self._named = None if keys is None else {name: key.sha256 for name, key in keys.items() if not key.metrics_only}
        self._of_scrapers = {name: key.sha256 for name, key in named.items() if key.metrics_only}
        self._inviting = frozenset(name for name, key in named.items() if key.may_invite)

    @property
    def is_asked_for(self) -> bool:
        """True if the API cannot be used without a key. Once one was made this stays so, also when the last one is taken away."""
        return bool(self._fixed) or self._named is not None

    def may_invite(self, key: str) -> bool:
        """True if this key was made to let machines in, too. The one of the settings, which is handed to clients, was not."""
        return self.name_of(key) in self._inviting

    def name_of(self, key: str) -> str | None:
        """Returns: whose key this is; None for nobody's, and for one that opens /metrics alone."""
        return _owner(key, self._fixed | (self._named or {}))

    def opens_metrics_alone(self, key: str) -> bool:
        """True for a key that opens /metrics and nothing else."""
        return _owner(key, self._of_scrapers) is not None


def _owner(key: str, keys: Mapping[str, str]) -> str | None:
    given, found = _digest(key), None
    for name, known in keys.items():
        if hmac.compare_digest(given, known):
            found = name
    return found


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
