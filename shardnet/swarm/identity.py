"""Who this process is: its swarm, its key and certificate, and which members are no longer members.

On the machine that owns the swarm nothing is asked of anybody: `ensure_swarm` makes the authority when there is none, and `claim_identity` makes
keys and certificates as daemons need them. On a machine that joined by token the certificate comes from the owner (`enrol`).
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from cryptography import x509

from shardnet.errors import SettingsError, UnreachableError, UsageError
from shardnet.ids import short
from shardnet.log import get
from shardnet.swarm import authority
from shardnet.swarm.addresses import is_loopback, parse_host_port
from shardnet.swarm.home import (
    PUBLIC,
    Home,
    hold_lock,
    make_folder,
    read_private,
    read_public,
    read_records,
    write_in_home,
    write_records,
)
from shardnet.swarm.naming import names_taken
from shardnet.swarm.records import MEMBERS, NAME_PATTERN, REVOCATIONS, Member, Revocation, at

Role = Literal["node", "coordinator", "client"]
SWARM_KEY_BYTES = 32
MOST_IDENTITIES = 1000

log = get("swarm")


@dataclass(frozen=True, slots=True)
class SwarmIdentity:
    """The swarm that a home belongs to."""

    home: Home
    swarm_id: str
    ca_pem: bytes
    ca: x509.Certificate
    swarm_key: bytes
    is_owner: bool

    def ca_key(self) -> authority.PrivateKey:
        """Returns: the authority's key.

        Raises: SettingsError where this machine is not the swarm's owner, or the key file is readable by others.
        """
        if not self.is_owner:
            raise SettingsError(
                f"{self.home.path} does not hold the key of swarm {short(self.swarm_id)}: "
                "only the machine that made the swarm can invite, revoke and sign"
            )
        return authority.parse_key(read_private(self.home.ca_key), source=str(self.home.ca_key))


class Identity:
    """One daemon's membership, held for as long as the process lives. Release it, or use it as a context manager.

    Attributes:
        is_new: its key and its certificate were made for this process just now.
    """

    def __init__(
        self, swarm: SwarmIdentity, name: str, role: Role, key: authority.PrivateKey, pem: bytes, locks: ExitStack
    ) -> None:
        self.swarm = swarm
        self.name = name
        self.role: Role = role
        self.private_key = key
        self.node_id = authority.id_of(key.public_key())
        self.folder = swarm.home.nodes / name
        self.key_path = self.folder / "key.pem"
        self.certificate_path = self.folder / "cert.pem"
        self.certificate_pem = pem
        self.revoked: frozenset[str] = frozenset(_read_revoked(swarm.home))
        self._watchers: set[Callable[[frozenset[str]], None]] = set()
        self._locks = locks
        self.is_new = False

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, {short(self.node_id)}, swarm {short(self.swarm.swarm_id)})"

    @property
    def home(self) -> Home:
        """The folder that this identity lies in."""
        return self.swarm.home

    @property
    def is_owner(self) -> bool:
        """True if this home can issue certificates, invite and sign."""
        return self.swarm.is_owner

    def key_pem(self) -> bytes:
        """Returns: the private key, PEM. Raises: SettingsError if others could read the file too."""
        return read_private(self.key_path)

    def set_revoked(self, node_ids: Iterable[str]) -> None:
        """These members are no longer members: new connections with them are refused, open ones closed. Replaces earlier lists.

        Belongs to the event loop's thread.
        """
        revoked = frozenset(node_ids)
        if revoked == self.revoked:
            return
        self.revoked = revoked
        for watcher in tuple(self._watchers):
            watcher(revoked)

    def watch_revocations(self, watcher: Callable[[frozenset[str]], None]) -> Callable[[], None]:
        """Have `watcher` called whenever the list changes. Returns: how to end that."""
        self._watchers.add(watcher)
        return lambda: self._watchers.discard(watcher)

    def release(self) -> None:
        """Let another process take this identity. Harmless when repeated."""
        self._locks.close()

    def forget_if_new(self) -> None:
        """For a start that failed: leave no member behind that never was. Writes files. An identity that was there before stays."""
        if not self.is_new:
            return
        self.is_new = False
        with self.home.locked():
            members = read_records(self.home.members, MEMBERS, {})
            if members.pop(self.node_id, None) is not None:
                write_records(self.home.members, MEMBERS, members)
            shutil.rmtree(self.key_path.parent, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release()


# -- the swarm ---------------------------------------------------------------------------------------------------------------


def ensure_swarm(home: Home) -> SwarmIdentity:
    """Returns: the swarm of this home, made now if it has none. Any number of processes may call it at once.

    Raises: SettingsError for a folder or file that cannot be used, a key file that others can read among them.
    """
    with home.locked():
        if not home.has_swarm:
            make_folder(home.swarm)
            key = authority.new_key()
            certificate = authority.new_authority(key)
            write_in_home(home.ca_key, authority.key_to_pem(key))
            write_in_home(home.swarm_key, os.urandom(SWARM_KEY_BYTES))
            # Last: its presence says that the rest is there.
            write_in_home(home.ca_certificate, authority.to_pem(certificate), mode=PUBLIC)
            log.info("swarm_created", swarm_id=short(authority.id_of(key.public_key())), home=str(home.path))
        return open_swarm(home)


def open_swarm(home: Home) -> SwarmIdentity:
    """Returns: the swarm that this home belongs to.

    Raises: UnreachableError if it belongs to none; SettingsError for files that cannot be used.
    """
    if not home.has_swarm:
        raise UnreachableError(
            f"{home.path} belongs to no swarm yet: run `shardnet swarm init` here, or `shardnet join TOKEN` "
            "with a token from the swarm's owner"
        )
    pem = read_public(home.ca_certificate)
    certificate = authority.parse_certificate(pem, source=str(home.ca_certificate))
    key = read_private(home.swarm_key)
    if len(key) != SWARM_KEY_BYTES:
        raise SettingsError(f"{home.swarm_key} holds {len(key)} bytes instead of {SWARM_KEY_BYTES}: restore it")
    if home.is_owner:
        read_private(home.ca_key)  # says so now if its mode is too wide
    return SwarmIdentity(
        home=home,
        swarm_id=authority.id_of(authority.p256(certificate.public_key())),
        ca_pem=pem,
        ca=certificate,
        swarm_key=key,
        is_owner=home.is_owner,
    )


# -- identities --------------------------------------------------------------------------------------------------------------


def claim_identity(home: Home, name: str | None, role: Role, *, peers: Iterable[str] = ()) -> Identity:
    """Take one of this home's identities for this process, making key and certificate where this home can.

    Args:
        name: None takes the first free one of `role`, `role-2`, ...
        peers: HOST:PORT of members that the user named. With one on another machine, a home without a swarm makes none of its own.

    Raises: UnreachableError if this machine has no certificate and cannot make one: it has to join first. SettingsError if the
        name is in use by another process, was revoked, or its certificate has expired.
    """
    elsewhere = next((peer for peer in peers if not is_loopback(parse_host_port(peer)[0])), None)
    if elsewhere is not None and not home.has_swarm:
        raise UnreachableError(
            f"this machine is no member of the swarm of {elsewhere} yet: run `shardnet join TOKEN` with a token from that swarm's owner "
            "(`shardnet swarm invite` there)"
        )
    swarm = ensure_swarm(home)
    with home.locked():
        for candidate in [checked_name(name)] if name is not None else _candidates(swarm, role):
            folder = home.nodes / candidate
            make_folder(home.nodes)
            make_folder(folder)
            locks = ExitStack()
            was_there = (folder / "key.pem").exists()
            try:
                _hold(locks, folder)
                (folder / home.coordinator.name).unlink(missing_ok=True)  # what a coordinator wrote that is gone
                key, pem = _key_and_certificate(swarm, candidate)
            except BlockingIOError:
                if name is None:
                    continue
                raise SettingsError(in_use_sentence(folder)) from None
            except BaseException:
                locks.close()
                raise
            identity = Identity(swarm, candidate, role, key, pem, locks)
            identity.is_new = not was_there
            return identity
    raise SettingsError(
        f"every identity in {home.nodes} is in use: to run one more daemon on this machine, "
        "run `shardnet join TOKEN --name ANOTHER-NAME` with a new token"
    )


def checked_name(name: str) -> str:
    """Returns: `name`. Raises: UsageError if it cannot be an identity's name (and a folder's)."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"{name!r} cannot be a node's name: use up to 63 letters, digits, '.', '_' and '-'")
    return name


@contextmanager
def held_folder(home: Home, name: str) -> Iterator[Path]:
    """Hold the folder of one identity without needing a certificate in it: for enrolment.

    Raises: SettingsError if a running process holds it.
    """
    folder = home.nodes / checked_name(name)
    make_folder(home.nodes)
    make_folder(folder)
    with ExitStack() as locks:
        try:
            with home.locked():
                _hold(locks, folder)
        except BlockingIOError:
            raise SettingsError(in_use_sentence(folder)) from None
        yield folder


def in_use_sentence(folder: Path) -> str:
    """Returns: why an identity cannot be had."""
    try:
        holder = f" (process {int((folder / 'lock').read_text())})"
    except (OSError, ValueError):
        holder = ""
    return f"the identity {folder.name!r} is in use by another running daemon{holder}: give this one another --name"


def _hold(locks: ExitStack, folder: Path) -> None:
    descriptor = locks.enter_context(hold_lock(folder / "lock", wait=False))
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, b"%d" % os.getpid(), 0)


def _candidates(swarm: SwarmIdentity, role: Role) -> Iterator[str]:
    if swarm.is_owner:
        invited = {
            node: one for node, one in read_records(swarm.home.members, MEMBERS, {}).items() if one.how == "invited"
        }
        taken = names_taken(invited, _read_revoked(swarm.home), time.time())
        for name in (role, *(f"{role}-{number}" for number in range(2, MOST_IDENTITIES))):
            if name not in taken or (swarm.home.nodes / name / "cert.pem").exists():
                yield name
        return
    present = sorted(path.parent.name for path in swarm.home.nodes.glob("*/cert.pem"))
    if not present:
        raise UnreachableError(
            f"{swarm.home.path} holds no certificate of swarm {short(swarm.swarm_id)}: "
            "run `shardnet join TOKEN` with a token from the swarm's owner"
        )
    yield from sorted(present, key=lambda one: (not one.startswith(role), one))


def read_or_make_key(folder: Path) -> authority.PrivateKey:
    """Returns: the key of the identity in `folder`, made now if it has none. The caller holds the identity's lock."""
    path = folder / "key.pem"
    if not path.exists():
        write_in_home(path, authority.key_to_pem(authority.new_key()))
    return authority.parse_key(read_private(path), source=str(path))


def _key_and_certificate(swarm: SwarmIdentity, name: str) -> tuple[authority.PrivateKey, bytes]:
    """Read the identity, making or renewing what is missing where the authority's key is at hand. The caller holds the home's lock."""
    folder = swarm.home.nodes / name
    path = folder / "cert.pem"
    if not swarm.is_owner and not path.exists():
        raise UnreachableError(
            f"this machine has no certificate called {name!r} in swarm {short(swarm.swarm_id)}: "
            f"run `shardnet join TOKEN --name {name}` with a token from the swarm's owner"
        )
    key = read_or_make_key(folder)
    node_id = authority.id_of(key.public_key())
    revocation = _read_revoked(swarm.home).get(node_id)
    if revocation is not None:
        raise SettingsError(
            f"node {name!r} ({short(node_id)}) was revoked at {at(revocation.revoked_at_s)}: "
            f"use another --name, or move {folder} away and join again"
        )
    pem = path.read_bytes() if path.exists() else b""
    ends = certificate_ends(pem, swarm.ca, node_id)
    now = datetime.now(UTC)
    if swarm.is_owner and (ends is None or ends - now < timedelta(days=authority.RENEW_BEFORE_DAYS)):
        certificate = authority.issue(swarm.ca_key(), swarm.ca, key.public_key())
        pem = authority.to_pem(certificate)
        write_in_home(path, pem, mode=PUBLIC)
        add_member(swarm.home, node_id, name, "local", certificate)
    elif ends is None:
        raise SettingsError(
            f"{path} is not a certificate of this machine's key in swarm {short(swarm.swarm_id)}: "
            f"run `shardnet join TOKEN --name {name}` with a new token"
        )
    elif ends <= now:
        raise SettingsError(
            f"the certificate of {name!r} expired at {at(ends.timestamp())}: "
            f"run `shardnet join TOKEN --name {name}` with a new token from the swarm's owner"
        )
    elif ends - now < timedelta(days=authority.RENEW_BEFORE_DAYS):
        log.warning("certificate_expires_soon", name=name, expires=at(ends.timestamp()))
    return key, pem


def certificate_ends(pem: bytes, ca: x509.Certificate, node_id: str) -> datetime | None:
    """Returns: when the certificate ends; None if it is not this authority's for this key."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        matches = authority.id_of(authority.p256(certificate.public_key())) == node_id
    except ValueError:
        return None
    return certificate.not_valid_after_utc if matches and authority.is_issued_by(certificate, ca) else None


# -- records -----------------------------------------------------------------------------------------------------------------


def add_member(
    home: Home, node_id: str, name: str, how: Literal["local", "invited"], certificate: x509.Certificate
) -> None:
    """Remember an issued certificate. The caller holds the home's lock."""
    members = read_records(home.members, MEMBERS, {})
    ends = certificate.not_valid_after_utc.timestamp()
    members[node_id] = Member(name=name, joined_at_s=time.time(), how=how, expires_at_s=ends)
    write_records(home.members, MEMBERS, members)


def _read_revoked(home: Home) -> dict[str, Revocation]:
    return read_records(home.revoked, REVOCATIONS, {})
