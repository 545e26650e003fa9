"""What shells are offered, asked by the variables by which they ask."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.cli.completing import SHELLS
from shardnet.errors import ShardnetError, UsageError


def offered(line: str, environ: dict[str, str] | None = None) -> list[str]:
    """Returns: what bash is offered at the end of a line."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_SHARDNET_COMPLETE": "complete_bash"}
    result = CliRunner().invoke(app, [], env=asked | (environ or {}), prog_name="shardnet", catch_exceptions=False)
    return result.stdout.split()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A models cache whose manifests say only what is read here, beside files that are none."""
    for folder, name, ends in (("shards/a-1", "Alpha", (3, 6)), ("b-2", "Beta", (4,)), ("c-3", "", ())):
        shards = [{"shard_id": n, "layers": {"first": 0, "end": end}} for n, end in enumerate(ends)]
        (tmp_path / folder).mkdir(parents=True)
        text = json.dumps({"name": name, "content": {"shards": shards}}) if name else "{nonsense"
        (tmp_path / folder / "manifest.json").write_text(text)
    return tmp_path


@contextmanager
def coordinator(pause_s: float = 0) -> Iterator[str]:
    """Answers the question for models; not before some seconds have passed. Yields: its address."""
    may_answer = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if pause_s:
                may_answer.wait(pause_s)
            body = json.dumps({"data": [{"id": "Gamma"}, {"id": "Delta"}]}).encode()
            self.send_response(200 if self.headers.get("Authorization") == "Bearer k" else 401)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    class Quiet(HTTPServer):
        def handle_error(self, *_arguments: object) -> None:
            pass

    with Quiet(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            may_answer.set()
            server.shutdown()
            thread.join()


def test_commands_options_and_fixed_words_are_offered(home: Path) -> None:
    assert {"node", "coordinator", "config", "split"} <= set(offered("shardnet "))
    assert offered("shardnet conf") == ["config"]
    assert {"show", "check"} == set(offered("shardnet config "))
    assert "--memory-mode" in offered("shardnet node --mem")
    assert offered("shardnet node --memory-mode s") == ["streamed"]
    assert offered("shardnet config check --for c") == ["coordinator"]
    assert offered("shardnet seed --log-level d") == ["debug"]
    assert offered("shardnet --show-completion z") == ["zsh"]


def test_where_a_path_is_wanted_nothing_is_offered_so_that_shells_offer_files(home: Path) -> None:
    assert offered("shardnet split ") == offered("shardnet node --config ") == []


def test_shards_and_models_come_from_the_cache_that_the_line_names(home: Path, cache: Path) -> None:
    assert offered(f"shardnet node --models-cache {cache} --shard ") == ["0", "1"]
    assert offered("shardnet node --models-cache /nowhere --shard ") == []


def test_models_come_from_the_coordinator_and_without_one_from_the_cache(
    home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cache.parent)
    cache.rename(cache.parent / "models_cache")
    with coordinator() as url:
        assert offered("shardnet generate --model ", {"SHARDNET_API": url, "SHARDNET_API__KEY": "k"}) == [
            "Delta",
            "Gamma",
        ]
        assert offered(f"shardnet chat --api {url} --model G", {"SHARDNET_API__KEY": "k"}) == ["Gamma"]
        assert offered("shardnet fetch ", {"SHARDNET_API": url}) == ["Alpha", "Beta"]  # it wants a key
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{nobody.getsockname()[1]}"
        assert offered("shardnet generate --model A", {"SHARDNET_API": closed}) == ["Alpha"]
    for odd in ("ftp://x", "http://[", "http://127.0.0.1:99999", "https://127.0.0.1:1", "\udcff"):
        assert offered("shardnet generate --model A", {"SHARDNET_API": odd}) == ["Alpha"]


def test_a_coordinator_that_does_not_answer_keeps_nobody_waiting(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with coordinator(pause_s=30) as url:
        before_s = time.monotonic()
        assert offered("shardnet generate --model ", {"SHARDNET_API": url}) == []
        assert time.monotonic() - before_s < 10  # 0.2 s, and what a busy machine adds


def test_members_and_keys_come_from_the_home_folder(home: Path) -> None:
    assert offered("shardnet swarm revoke ") == offered("shardnet key remove ") == []
    swarm = home / "swarm"
    swarm.mkdir(parents=True)
    (swarm / "members.json").write_text(json.dumps({"ab" * 20: {"name": "left"}, "cd" * 20: {"name": "right"}}))
    (swarm / "api_keys.json").write_text(json.dumps({"laptop": {}, "phone": {}}))
    assert offered("shardnet swarm revoke l") == ["left"]
    assert offered("shardnet key remove ") == ["laptop", "phone"]
    (swarm / "members.json").write_text("[" * 100_000)
    (swarm / "api_keys.json").write_bytes(b"\xff")
    assert offered("shardnet swarm revoke ") == offered("shardnet key remove ") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_each_shell_is_printed_without_a_terminal(shell: str) -> None:
    result = CliRunner().invoke(app, ["--show-completion", shell], catch_exceptions=False)
    assert result.exit_code == 0
    assert "_SHARDNET_COMPLETE" in result.stdout


def test_completion_is_installed_for_a_shell_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["--install-completion", "fish"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "_SHARDNET_COMPLETE" in (tmp_path / ".config/fish/completions/shardnet.fish").read_text()
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "no-folder"))
    told = CliRunner().invoke(app, ["--install-completion", "fish"]).exception
    assert isinstance(told, UsageError)
    assert "shardnet --show-completion fish" in str(told)


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
def test_another_shell_is_refused_in_one_sentence(option: str) -> None:
    told = CliRunner().invoke(app, [option, "tcsh"]).exception
    assert isinstance(told, ShardnetError)
    assert told.exit_code == 2
    assert "'tcsh' is no shell that completion is there for" in str(told)


def test_nothing_heavy_is_imported_for_an_answer_or_for_help() -> None:
    code = (
        "import sys, os; sys.argv = ['shardnet', '--help']; from shardnet.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'httpx', 'cryptography', 'llama_cpp', 'libtorrent', 'structlog', 'asyncio', 'psutil', 'kademlia'} & set(sys.modules)\n"
        "print('heavy', sorted(heavy), file=sys.stderr)"
    )
    for asked in ({}, {"_SHARDNET_COMPLETE": "complete_bash", "COMP_WORDS": "shardnet key remove ", "COMP_CWORD": "3"}):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": "/bin", "HOME": "/nowhere"} | asked,
        )
        assert done.stderr.strip() == "heavy []"
