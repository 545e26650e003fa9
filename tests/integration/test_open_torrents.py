"""Publishing: `shardnet torrent` and `shardnet seed --open` give a model to ordinary BitTorrent clients that know nothing of swarms."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest

from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.local.processes import LocalSwarm
from tests.support.free_ports import free_ports
from tests.support.random_models import tiny_llama

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

QBITTORRENT = shutil.which("qbittorrent-nox")
PATIENCE_S = 60.0


@dataclass
class Published:
    """A model that is seeded openly."""

    folder: Path
    torrents: list[Path]
    port: int

    def check(self, taken: Path) -> None:
        for shard in self.folder.glob("shard-*.gguf"):
            assert sha256(taken / shard.name) == sha256(shard)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SHARDNET_HOME": str(home)}
    command = [sys.executable, "-m", "shardnet", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    place = tmp_path_factory.mktemp("published")
    whole = tiny_llama(place / "tiny.gguf", n_layers=4, n_embd=256)
    folder, _ = split_model(plan_split(whole, CutRequest(n_shards=2), "tiny"), place / "split")
    with LocalSwarm(place / "publisher", log_format="json") as processes:
        done = run(processes.home, "torrent", str(folder), "--out", str(place / "torrents"), "--json")
        assert done.returncode == 0, done.stderr
        seed = processes.start("seed", "seed", str(folder), "--open", "--listen", "127.0.0.1:0")

        def ports() -> list[int]:
            lines = [json.loads(line) for line in list(seed.tail) if line.startswith("{")]
            return [int(line["port"]) for line in lines if line["event"] == "open_seed_listening"]

        processes.wait_for(lambda: bool(ports()), 30, "the open seed")
        assert not (processes.home / "swarm").exists(), "publishing needs no swarm"
        yield Published(folder, [Path(one["file"]) for one in json.loads(done.stdout)], ports()[0])


def test_a_client_with_libtorrents_own_settings_takes_every_shard(published: Published, tmp_path: Path) -> None:
    session: Any = lt.session({"listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False})
    handles: list[Any] = []
    for torrent in published.torrents:
        params: Any = lt.load_torrent_buffer(torrent.read_bytes())
        params.save_path = str(tmp_path / "taken")
        handles.append(session.add_torrent(params))
        handles[-1].connect_peer(("127.0.0.1", published.port))
    until = time.monotonic() + PATIENCE_S
    while not all(handle.status().is_seeding for handle in handles):
        assert time.monotonic() < until
        session.wait_for_alert(200)
        session.pop_alerts()
    for handle in handles:
        session.remove_torrent(handle)  # closes its file
    removed = 0
    while removed < len(handles):
        assert time.monotonic() < until
        session.wait_for_alert(1000)
        removed += sum(isinstance(alert, lt.torrent_removed_alert) for alert in session.pop_alerts())
    handles.clear()
    del session
    published.check(tmp_path / "taken")


class QBittorrent:
    """Debian's qbittorrent-nox, driven by its web API; every discovery of its own is off."""

    def __init__(self, folder: Path) -> None:
        assert QBITTORRENT is not None
        web_port, port = free_ports(2)
        self._base = f"http://127.0.0.1:{web_port}/api/v2"
        config = folder / "qBittorrent" / "config" / "qBittorrent.conf"
        config.parent.mkdir(parents=True)
        off = "".join(f"Session\\{name}=false\n" for name in ("DHTEnabled", "LSDEnabled", "PeXEnabled"))
        config.write_text(
            f"[LegalNotice]\nAccepted=true\n\n[BitTorrent]\n{off}Session\\Port={port}\n\n"
            "[Preferences]\nWebUI\\Address=127.0.0.1\nWebUI\\LocalHostAuth=false\n"
        )
        self._process = subprocess.Popen(
            [QBITTORRENT, f"--profile={folder}", f"--webui-port={web_port}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": str(folder)},
        )

    def __enter__(self) -> QBittorrent:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.version = self.get("app/version").decode()
                return self
            except (urllib.error.URLError, ConnectionError):
                assert self._process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()  # it flushes its files on the way out
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self._base}/{path}", timeout=10) as answer:
            return bytes(answer.read())

    def post(self, path: str, data: bytes, kind: str) -> None:
        request = urllib.request.Request(f"{self._base}/{path}", data, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()

    def add(self, torrent: Path, save_path: Path) -> None:
        parts = [(b'name="savepath"', str(save_path).encode())]
        parts.append((b'name="torrents"; filename="x.torrent"', torrent.read_bytes()))
        body = b"".join(
            b"--cut\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + value + b"\r\n" for head, value in parts
        )
        self.post("torrents/add", body + b"--cut--\r\n", "multipart/form-data; boundary=cut")

    def torrents(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.get("torrents/info"))
        return found

    def add_peer(self, port: int) -> None:
        hashes = "|".join(one["hash"] for one in self.torrents())
        data = urllib.parse.urlencode({"hashes": hashes, "peers": f"127.0.0.1:{port}"}).encode()
        self.post("torrents/addPeers", data, "application/x-www-form-urlencoded")


@pytest.mark.skipif(QBITTORRENT is None, reason="needs qbittorrent-nox (Debian: apt-get install qbittorrent-nox)")
def test_debians_qbittorrent_takes_every_shard(published: Published, tmp_path: Path) -> None:
    with QBittorrent(tmp_path / "profile") as client:
        for torrent in published.torrents:
            client.add(torrent, tmp_path / "taken")
        until = time.monotonic() + PATIENCE_S
        while len(client.torrents()) < len(published.torrents):
            assert time.monotonic() < until
            time.sleep(0.1)
        client.add_peer(published.port)  # once: naming it again would make it forget that uTP was tried in vain
        while not all(one["progress"] == 1 and one["amount_left"] == 0 for one in client.torrents()):
            assert time.monotonic() < until, client.torrents()
            time.sleep(0.2)
    published.check(tmp_path / "taken")


def test_open_and_swarm_do_not_mix(published: Published, tmp_path: Path) -> None:
    done = run(tmp_path / "home", "seed", str(published.folder), "--open", "--coordinator", "127.0.0.1:1")
    assert done.returncode == 2
    assert "--open" in done.stderr
    (tmp_path / "empty").mkdir()
    none = run(tmp_path / "home", "seed", str(tmp_path / "empty"), "--open")
    assert none.returncode == 2
    assert "no shard to seed" in none.stderr
