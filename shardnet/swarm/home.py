"""The home folder of one machine: where the swarm's keys, the members' records and this machine's identities lie.

    swarm/ca.pem  ca.key  swarm.key           the authority; `ca.key` only at the owner
    swarm/members.json invites.json revoked.json coordinator.json api_keys.json
    nodes/<name>/key.pem cert.pem lock        one identity per daemon; the lock says that it is running
    nodes/<name>/coordinator.json             where the coordinator of this identity listens; in swarm/ is what was written last

Coordinator, nodes and command line may start in the same instant: every change happens under one file lock, and every file appears
whole or not at all. Knows nothing of certificates: bytes, modes and locks only.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from shardnet.errors import SettingsError
from shardnet.faults import sentence
from shardnet.files import unwritable, write_whole
from shardnet.settings import default_home, expand_user

T = TypeVar("T")

PRIVATE = 0o600
PUBLIC = 0o644


class Home:
    """`$SHARDNET_HOME`, else `~/.shardnet`."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = (default_home() if path is None else expand_user(path)).absolute()
        self.swarm = self.path / "swarm"
        self.nodes = self.path / "nodes"
        self.ca_certificate = self.swarm / "ca.pem"
        self.ca_key = self.swarm / "ca.key"
        self.swarm_key = self.swarm / "swarm.key"
        self.members = self.swarm / "members.json"
        self.invites = self.swarm / "invites.json"
        self.revoked = self.swarm / "revoked.json"
        self.coordinator = self.swarm / "coordinator.json"
        self.api_keys = self.swarm / "api_keys.json"

    def __repr__(self) -> str:
        return f"Home({str(self.path)!r})"

    @property
    def has_swarm(self) -> bool:
        """True once this home belongs to a swarm: the authority's certificate is always written last."""
        return self.ca_certificate.exists()

    @property
    def is_owner(self) -> bool:
        """True if this home can issue certificates."""
        return self.has_swarm and self.ca_key.exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else on this machine changes this home meanwhile. Held for milliseconds."""
        make_folder(self.path)
        with hold_lock(self.path / "lock", wait=True):
            yield


def make_folder(path: Path) -> None:
    """Create a folder that only its owner may enter.

    Raises: SettingsError if it cannot be created.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"cannot create {path}: {error.strerror}; set SHARDNET_HOME to a folder of yours"
        ) from error


@contextmanager
def hold_lock(path: Path, *, wait: bool) -> Iterator[int]:
    """Hold an exclusive lock on `path`; the kernel lets go of it when the process dies, whatever way.

    Raises: BlockingIOError if `wait` is False and another process holds it; SettingsError if the file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        raise SettingsError(
            f"cannot open {path}: {error.strerror}; SHARDNET_HOME names a folder of yours, if this one is somebody else's"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield descriptor
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """True if some process holds the lock on `path`. Call it under `Home.locked()`: who claims the lock must not find it taken by the question.

    Raises: SettingsError if the file cannot be opened.
    """
    try:
        with hold_lock(path, wait=False):
            return False
    except BlockingIOError:
        return True


def running(home: Home) -> dict[str, int]:
    """Returns: the identities of this home that processes run with: name -> process id, 0 if it did not say. Takes the lock of the home."""
    found = {}
    if home.nodes.is_dir():
        with suppress(SettingsError), home.locked():  # a home that cannot be written to has no daemons that run
            for lock in sorted(home.nodes.glob("*/lock")):
                if is_held(lock):
                    said = lock.read_text(errors="replace").strip()
                    found[lock.parent.name] = int(said) if said.isdecimal() else 0
    return found


def write_in_home(path: Path, data: bytes, *, mode: int = PRIVATE) -> None:
    """Make `data` the content of `path`, whole or not at all.

    Raises: NoRoomError if the disk is full; SettingsError if the folder cannot be written.
    """
    try:
        write_whole(path, data, mode=mode)
    except OSError as error:
        raise unwritable(path, error, SettingsError) from error


def read_public(path: Path) -> bytes:
    """Returns: the file's bytes.

    Raises: SettingsError if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error


def read_private(path: Path) -> bytes:
    """Returns: a key file's bytes.

    Raises: SettingsError if it cannot be read, or if others than its owner could read it too.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if mode & 0o077:
                raise SettingsError(
                    f"others can read the key file {path} (mode {mode:04o}): run `chmod 600 {path}`, "
                    "and make a new key if somebody may have copied it"
                )
            return file.read()
    except OSError as error:
        raise SettingsError(f"cannot read the key file {path}: {error.strerror}") from error


def read_records(path: Path, kind: TypeAdapter[T], empty: T) -> T:
    """Returns: the records in a JSON file; `empty` if there is no such file.

    Raises: SettingsError if the file is damaged.
    """
    try:
        return load_records(path, kind)
    except FileNotFoundError:
        return empty


def load_records(path: Path, kind: TypeAdapter[T]) -> T:
    """Returns: the records in a JSON file. Raises: FileNotFoundError; SettingsError if the file is damaged."""
    try:
        return kind.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise SettingsError(f"{path} is damaged ({sentence(error)}): restore it, or move it away") from error


def write_records(path: Path, kind: TypeAdapter[T], records: T) -> None:
    """Write records that `read_records` reads. Call it under `Home.locked()`, as part of read, change, write."""
    write_in_home(path, kind.dump_json(records, indent=1) + b"\n")
