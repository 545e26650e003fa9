"""What the torrent tests share: a certificate authority, files of random bytes, and sessions on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import libtorrent as lt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shardnet.torrent.metainfo import make_torrent
from shardnet.torrent.progress import TorrentStats
from shardnet.torrent.session import OnRotten, TorrentSession
from shardnet.torrent.settings import TorrentSettings
from shardnet.torrent.tls import FFDHE2048_PEM, TlsMaterial

NO_WAIT: dict[str, Any] = {
    "stall_timeout_s": 2.0,
    "reconnect_interval_s": 0.3,
    "progress_interval_s": 0.1,
    "flush_interval_s": 0.2,
    "keep_free_bytes": 0,
}


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


class Authority:
    """A swarm's certificate authority."""

    def __init__(self, name: str = "swarm") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key.public_key())
        self._certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(
            self._key, hashes.SHA256()
        )
        self.pem = _pem(self._certificate)

    def member(self) -> TlsMaterial:
        """Returns: a new member's certificate and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "member")])
        certificate = (
            self._builder(name, key.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("*")]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return TlsMaterial(ca_pem=self.pem, cert_pem=_pem(certificate), key_pem=private)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )


@dataclass(frozen=True)
class Shard:
    """A file of random bytes and what a manifest would say of it."""

    path: Path
    sha256: str
    size: int
    torrent: bytes

    def wanted(self) -> dict[str, Any]:
        """Returns: the arguments of `fetch` that say what is wanted."""
        return {"expect_sha256": self.sha256, "expect_bytes": self.size, "label": "0"}


def make_shard(folder: Path, size: int, root_cert_pem: bytes | None = None, *, seed: int = 1) -> Shard:
    """Returns: `folder/shard-0.gguf` with `size` random bytes, and its torrent."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "shard-0.gguf"
    generator = random.Random(seed)
    content = b"".join(generator.randbytes(min(1 << 24, size - at)) for at in range(0, size, 1 << 24))
    path.write_bytes(content)
    torrent = make_torrent(path, name="shard-0.gguf", root_cert_pem=root_cert_pem)
    return Shard(path, hashlib.sha256(content).hexdigest(), size, torrent)


class Reached:
    """An `on_progress` that keeps all reports and lets a test wait for a share of the file."""

    def __init__(self, fraction: float) -> None:
        self.reports: list[TorrentStats] = []
        self._fraction = fraction
        self._event = asyncio.Event()

    def __call__(self, stats: TorrentStats) -> None:
        self.reports.append(stats)
        if stats.fraction >= self._fraction:
            self._event.set()

    async def wait(self) -> TorrentStats:
        """Returns: the latest report, once the share has been reached."""
        await asyncio.wait_for(self._event.wait(), 30)
        return self.reports[-1]


@dataclass
class World:
    """Sessions that all end with the test."""

    folder: Path
    stack: AsyncExitStack
    authority: Authority = field(default_factory=Authority)
    _sessions: list[TorrentSession] = field(default_factory=list)

    async def session(
        self,
        name: str,
        tls: TlsMaterial | None = None,
        *,
        on_rotten: OnRotten | None = None,
        on_unreadable: OnRotten | None = None,
        **settings: Any,
    ) -> TorrentSession:
        """Returns: an entered session with quick timings."""
        chosen = TorrentSettings(**(NO_WAIT | settings))
        session = TorrentSession(
            chosen, tls, self.folder / name / "state", on_rotten=on_rotten, on_unreadable=on_unreadable
        )
        await session.__aenter__()
        if not self._sessions:
            self.stack.push_async_callback(self._close)
        self._sessions.append(session)
        return session

    async def _close(self) -> None:
        """All at once: libtorrent holds up a session for three seconds that leaves a TLS link whose other end stays."""
        await asyncio.gather(*(session.__aexit__(None, None, None) for session in self._sessions))

    def target(self, name: str) -> Path:
        """Returns: where that node's shard belongs."""
        return self.folder / name / "shard-0.gguf"


@contextmanager
def raw_session(
    torrent: bytes, folder: Path, *, tls: TlsMaterial | None = None, host: str = "127.0.0.1", seeding: bool
) -> Iterator[tuple[int, Any]]:
    """A BitTorrent client that follows none of our rules: it checks no hashes and takes any certificate it is told to show."""
    native: Any = lt.session(
        {
            "listen_interfaces": f"{host}:0{'s' if b'ssl-cert' in torrent else ''}",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "enable_outgoing_utp": False,
            "enable_incoming_utp": False,
            "disable_hash_checks": True,
            "allow_multiple_connections_per_ip": True,
            "min_reconnect_time": 1,
            "alert_mask": int(lt.alert_category.status | lt.alert_category.error),
        }
    )
    params: Any = lt.load_torrent_buffer(torrent)
    params.save_path = str(folder)
    params.flags = lt.torrent_flags.default_flags & ~lt.torrent_flags.auto_managed & ~lt.torrent_flags.paused
    if seeding:
        params.flags |= lt.torrent_flags.seed_mode
    handle: Any = native.add_torrent(params)
    if tls is not None:
        handle.set_ssl_certificate_buffer(tls.cert_pem.decode(), tls.key_pem.decode(), FFDHE2048_PEM)
    port = 0
    while port == 0:
        native.wait_for_alert(1000)
        port = next((a.port for a in native.pop_alerts() if isinstance(a, lt.listen_succeeded_alert)), 0)
    try:
        yield port, handle
    finally:
        del handle, native


def with_flipped_bytes(path: Path, folder: Path, *, every: int) -> Path:
    """Returns: `folder`, with a copy of the file in which one byte of every `every` is flipped."""
    folder.mkdir()
    content = bytearray(path.read_bytes())
    for position in range(every // 2, len(content), every):
        content[position] ^= 0xFF
    (folder / path.name).write_bytes(content)
    return folder
