"""Ranges of one file: whole and in order whatever the server does, never of two versions, and a sentence where it cannot be had."""

from __future__ import annotations

import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shardnet.errors import GgufError, PeerRefused, RefusedError, UnreachableError, UsageError
from shardnet.inference.remote import ranges
from shardnet.inference.remote.address import parse_address
from shardnet.inference.remote.ranges import RemoteFile
from shardnet.inference.remote.transfers import Transfers
from tests.support.free_ports import free_ports
from tests.support.range_server import Served, range_server

DATA = bytes(range(256)) * 400
PATH = "/m.gguf"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(ranges, "MOST_WAIT_S", 0.05)


@contextmanager
def remote(url: str, patience_s: float = 0.3, token: str = "") -> Iterator[tuple[RemoteFile, Transfers]]:
    transfers = Transfers()
    try:
        yield RemoteFile(parse_address(url), transfers.client, patience_s=patience_s, token=token), transfers
    finally:
        transfers.close()


def read(url: str, change: Callable[[], None] = lambda: None, token: str = "") -> tuple[bytes, int]:
    """Returns: a file in three ranges, with something that happens after the first, and the bytes asked for."""
    with remote(url, token=token) as (file, transfers):
        size = transfers.run(file.open()).size
        parts = [transfers.run(file.fetch(0, 1000))]
        change()
        parts += [transfers.run(file.fetch(start, end)) for start, end in ((1000, 70_000), (70_000, size))]
        return b"".join(parts), file.asked_bytes


def test_a_file_comes_whole_and_is_asked_for_once() -> None:
    with range_server({PATH: DATA}) as (url, served):
        data, asked = read(url + PATH)
        assert data == DATA
        assert asked == len(DATA) + ranges.PROBE_BYTES == served.sent_bytes
        assert served.headers[0]["accept-encoding"] == "identity"
        assert all("if-range" in seen for seen in served.headers[1:]), "every further range is of this version"


def test_a_broken_connection_is_gone_on_with_where_it_broke() -> None:
    with range_server({PATH: DATA}) as (url, served):
        data, asked = read(url + PATH, lambda: served.cuts.extend((50_000, 0, 7)))
        assert data == DATA
        assert "bytes=51000-69999" in served.asked
        assert served.sent_bytes == len(DATA) + ranges.PROBE_BYTES, "no byte came twice"
        assert asked > served.sent_bytes, "what was asked for and did not come counts"


def test_a_server_that_is_busy_is_asked_again() -> None:
    with range_server({PATH: DATA}) as (url, served):
        served.statuses = deque((503, 429, 500))
        assert read(url + PATH)[0] == DATA


def test_a_server_that_restarts_is_waited_for() -> None:
    port = free_ports(1)[0]
    with remote(f"http://127.0.0.1:{port}{PATH}", patience_s=5) as (file, transfers):
        with range_server({PATH: DATA}, port):
            transfers.run(file.open())
        coming = transfers.start(file.fetch(0, len(DATA)))
        with range_server({PATH: DATA}, port):
            assert coming.result(5) == DATA


def test_a_server_that_gives_less_than_asked_for_is_asked_for_the_rest() -> None:
    with range_server({PATH: DATA}) as (url, served):
        served.at_most = 30_000
        assert read(url + PATH)[0] == DATA


def test_a_redirect_is_followed_once_and_takes_no_token_to_another_server() -> None:
    with range_server({"/blob": DATA}) as (blobs, given), range_server({}) as (url, served):
        served.redirects[PATH] = f"{blobs}/blob?signature=secret"
        assert read(url + PATH, token="hush")[0] == DATA
        assert [seen.get("authorization") for seen in served.headers] == ["Bearer hush"]
        assert not any("authorization" in seen for seen in given.headers)


def test_a_link_that_expired_is_asked_for_anew() -> None:
    with range_server({"/blob": DATA}) as (blobs, given), range_server({}) as (url, served):
        served.redirects[PATH] = f"{blobs}/blob?until=ten"

        def expire() -> None:
            given.statuses.append(403)

        assert read(url + PATH, expire)[0] == DATA
        assert len(served.headers) == 2


def test_many_ranges_under_way_to_a_link_that_expired_ask_for_it_anew() -> None:
    many, size = 6, len(DATA) // 6
    with range_server({"/blob": DATA}) as (blobs, given), range_server({}) as (url, served):
        served.redirects[PATH] = f"{blobs}/blob?until=ten"
        with remote(url + PATH, patience_s=10) as (file, transfers):
            transfers.run(file.open())
            served.redirects[PATH] = f"{blobs}/blob?until=eleven"
            given.expired.add("until=ten")
            running = [transfers.start(file.fetch(at * size, (at + 1) * size)) for at in range(many)]
            assert b"".join(one.result(20) for one in running) == DATA[: many * size]


def test_without_validators_the_size_alone_tells_versions_apart() -> None:
    with range_server({PATH: DATA}) as (url, served):
        served.validators = False
        assert read(url + PATH)[0] == DATA
        with pytest.raises(GgufError, match=r"changed while it was read .size 102400 before, 102500 now"):
            read(url + PATH, lambda: served.files.update({PATH: DATA + bytes(100)}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda served: served.files.update({PATH: DATA[::-1]}), "changed while it was read .etag "),
        (lambda served: served.files.update({PATH: DATA[:900]}), "changed while it was read"),
        (lambda served: served.etags.update({PATH: 'W/"2"'}), "changed while it was read .etag "),
        (lambda served: setattr(served, "has_ranges", False), "changed while it was read .its server sent the whole"),
    ],
    ids=["other bytes", "shorter", "weak", "whole"],
)
def test_a_file_that_changes_is_never_mixed(change: Callable[[Served], None], words: str) -> None:
    with range_server({PATH: DATA}) as (url, served), pytest.raises(GgufError, match=words):
        read(url + PATH, lambda: change(served))


@pytest.mark.parametrize(
    ("key", "value"),
    [("Content-Range", f"bytes 0-63/{'9' * 5000}"), ("Content-Range", "bytes 0-63/\xb2"), ("Content-Range", "")],
)
def test_a_range_that_is_none_is_refused(key: str, value: str) -> None:
    with range_server({PATH: DATA}) as (url, served):
        served.more_headers[key] = value
        with pytest.raises(RefusedError, match=r"does not say which bytes it sends"):
            read(url + PATH)


def test_a_retry_after_that_is_no_number_is_none() -> None:
    with range_server({PATH: DATA}) as (url, served):
        served.statuses.append(503)
        served.retry_after = "\xb2"
        assert read(url + PATH)[0] == DATA


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ({"has_ranges": False}, RefusedError, "its server does not answer ranges; download it"),
        ({"shift": 3}, RefusedError, "its server sent bytes 3-63 where 0-63 were asked for"),
        ({"files": {}}, UsageError, "there is no file at http://127.0.0.1:.*/m.gguf .status 404"),
        ({"files": {PATH: b""}}, GgufError, "it is empty"),
        ({"token": "x"}, PeerRefused, "status 401.: its server wants to know who asks; set .SHARDNET_HTTP_TOKEN"),
        ({"statuses": deque((418,))}, RefusedError, "its server answered 418"),
        ({"statuses": deque((503,) * 200)}, UnreachableError, "cannot be fetched: its server answered 503"),
        ({"content_type": "text/html; charset=utf-8"}, GgufError, "is a web page"),
        ({"files": {PATH: b"<!doctype html>" + DATA}}, GgufError, "is a web page"),
        ({"redirects": {PATH: PATH}}, UnreachableError, "leads on and on"),
        ({"redirects": {PATH: "ftp://example.org/m"}}, UnreachableError, "no http or https address"),
    ],
    ids=lambda value: "",
)
def test_what_cannot_be_had_is_said_in_one_sentence(how: dict[str, object], kind: type[Exception], words: str) -> None:
    with range_server({PATH: DATA}) as (url, served):
        for key, value in how.items():
            setattr(served, key, value)
        with pytest.raises(kind, match=words):
            read(url + PATH)


def test_a_token_that_is_not_taken_is_said() -> None:
    with range_server({PATH: DATA}) as (url, served):
        served.token = "right"
        with pytest.raises(PeerRefused, match=r"does not take this token"):
            read(url + PATH, token="wrong")
        assert read(url + PATH, token="right")[0] == DATA


def test_a_link_that_lets_nobody_in_is_given_up() -> None:
    with range_server({}) as (blobs, given), range_server({}) as (url, served):
        given.token = "nobody has it"
        served.redirects[PATH] = f"{blobs}/blob"
        with pytest.raises(PeerRefused, match=r"not given to us \(status 401 from http://.*/blob\)"):
            read(url + PATH)


def test_nobody_there_is_said_soon() -> None:
    with pytest.raises(UnreachableError, match=r"cannot be fetched: "):
        read(f"http://127.0.0.1:{free_ports(1)[0]}{PATH}")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A server's certificate for 127.0.0.1 that it signed itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    for extension in (address, x509.BasicConstraints(ca=True, path_length=0)):
        made = made.add_extension(extension, critical=False)
    file = tmp_path / "server.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM) + secret)
    return file


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with range_server({PATH: DATA}, tls=tls) as (url, served):
        with pytest.raises(UnreachableError, match=r"https://.* is not trusted: .*CERTIFICATE_VERIFY_FAILED"):
            read(url + PATH)
        assert served.headers == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert read(url + PATH)[0] == DATA


def test_transfers_end_at_once_when_they_are_closed() -> None:
    with range_server({PATH: DATA}) as (url, served):
        served.wait = threading.Event()
        transfers = Transfers()
        file = RemoteFile(parse_address(url + PATH), transfers.client)
        coming = transfers.start(file.open())
        transfers.close()
        served.wait.set()
        assert coming.cancelled()
