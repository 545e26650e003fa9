"""What people get wrong, and what they are told: one sentence, the exit code of docs/exit-codes.md, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from shardnet.inference.splitting.manifest_file import load_manifest, save_manifest
from shardnet.lifecycle import run_loop
from shardnet.local.processes import LocalSwarm, Process
from shardnet.swarm.signing import sign_if_owner
from tests.support.random_models import build_random_model, tiny_llama
from tests.support.small_disks import small_disk

pytestmark = pytest.mark.integration

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    error: str


def shardnet(home: Path, *arguments: str | Path) -> Done:
    """Run one command. It must never show a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "shardnet", *map(str, arguments)],
        env=os.environ | {"SHARDNET_HOME": str(home)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def refused(done: Done, code: int, *words: str) -> None:
    """It failed with this code, one sentence that has these words, and nothing on standard output."""
    assert done.code == code, done.error
    assert done.out == ""
    assert done.error.startswith("shardnet: ")
    assert done.error.count("\n") == 1
    for word in words:
        assert word in done.error


@dataclass(frozen=True)
class Split:
    """A tiny model, whole and in shards."""

    source: Path
    cache: Path

    def copy(self, folder: Path) -> Path:
        """Returns: the folder of the shards in a cache of its own, to be spoilt."""
        shutil.copytree(self.cache, folder)
        return next(folder.glob("shards/*"))


def make_split(folder: Path, seed: int, name: str) -> Split:
    source = tiny_llama(folder / f"{name}.gguf", seed=seed, name=name)
    done = shardnet(folder / "home", "split", source, "--shards", "3", "--out", folder / name, "--no-verify")
    assert done.code == 0, done.error
    return Split(source, folder / name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_split(tmp_path_factory.mktemp("wrong"), 1, "tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_split(tmp_path_factory.mktemp("other"), 2, "other")


# -- files ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[:300_000], ("is truncated", "bytes are missing", "fetch it again")),
        (lambda data: data[:200], ("cut off or damaged", "fetch the file again")),
        (lambda _data: b"", ("is not a GGUF", "it has only 0 bytes", "fetch it again")),
        (lambda _data: b"just a text file, and no model", ("is not a GGUF", "b'GGUF'")),
    ],
)
def test_a_file_that_is_no_whole_gguf_is_refused_by_name(
    model: Split, tmp_path: Path, spoil: Any, words: tuple[str, ...]
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(spoil(model.source.read_bytes()))
    refused(shardnet(tmp_path / "home", "split", file, "--out", tmp_path / "out"), 3, str(file), *words)
    refused(shardnet(tmp_path / "home", "inspect", file), 3, str(file), *words)
    assert not (tmp_path / "out").exists()


def test_an_encoder_is_refused_by_name(tmp_path: Path) -> None:
    bert = build_random_model(tmp_path / "bert.gguf", "bert")
    refused(shardnet(tmp_path / "home", "split", bert, "--out", tmp_path / "out"), 3, "bert", "encoder")
    assert not (tmp_path / "out").exists()


def test_verify_names_the_shard_with_a_flipped_bit(model: Split, tmp_path: Path) -> None:
    folder = model.copy(tmp_path / "cache")
    flip(folder / "shard-1.gguf")
    refused(shardnet(tmp_path / "home", "verify", folder, "--json"), 3, "shard-1.gguf is damaged", "fetch it again")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not JSON"), ('{"x": 1}', "model_id is missing"), (None, "shards end at layer 6 of 5")],
)
def test_a_spoilt_manifest_is_refused_in_words_for_people(
    model: Split, tmp_path: Path, text: str | None, words: str
) -> None:
    file = model.copy(tmp_path / "cache") / "manifest.json"
    file.write_text(text or file.read_text().replace('"n_layers": 6', '"n_layers": 5'))
    done = shardnet(tmp_path / "home", "verify", file.parent)
    refused(done, 3, "is not a usable manifest", words)
    assert "pydantic" not in done.error
    assert "input_value" not in done.error


def test_the_manifest_of_another_model_is_noticed(model: Split, other: Split, tmp_path: Path) -> None:
    folder = model.copy(tmp_path / "cache")
    shutil.copy(next(other.cache.glob("shards/*/manifest.json")), folder)
    refused(shardnet(tmp_path / "home", "verify", folder), 3, "its SHA-256 is not the manifest's")


def test_a_disk_without_room_is_told_with_what_has_to_stay_free(tmp_path: Path) -> None:
    """The sentence once read "the shards take 540 kB, but the disk has 23 MB free"."""
    disk = tmp_path / "disk"
    with small_disk(disk, "30m"):
        source = tiny_llama(tmp_path / "tiny.gguf")
        done = shardnet(tmp_path / "home", "split", source, "--out", disk, "--shards", "2")
        refused(done, 6, "the shards take", "have to stay free", "31.5 MB free", "--out")
        assert [path for path in disk.rglob("*") if path.is_file()] == []


def test_a_limit_for_one_file_is_told_with_what_would_fit(tmp_path: Path) -> None:
    """The system's own refusal in the middle of a file, as on a disk that takes no large ones."""
    source = tiny_llama(tmp_path / "tiny.gguf")
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); sys.argv[0] = 'shardnet'; "
        "from shardnet.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "split", str(source), "--out", str(tmp_path / "out"), "--shards", "2"],
        env=os.environ | {"SHARDNET_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    refused(
        Done(done.returncode, done.stdout, done.stderr), 6, "takes no file of", "--max-shard-bytes", "nothing was left"
    )
    assert list((tmp_path / "out" / "shards").iterdir()) == []


def flip(path: Path) -> None:
    """Change one bit near the end of a file."""
    with path.open("r+b") as file:
        file.seek(-5000, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@dataclass(frozen=True)
class Proving:
    """A command that is just proving shards, in a process of its own."""

    popen: subprocess.Popen[str]
    children: list[psutil.Process]
    scratch: Path

    def check_nothing_is_left(self) -> None:
        wait_for(lambda: not any(lives(child) for child in self.children), 40)
        wait_for(lambda: list(self.scratch.glob("shardnet-verify-*")) == [], 40)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def proving(tmp_path: Path, *arguments: str | Path) -> Iterator[Proving]:
    """Start a command, and wait until its verifying process computes."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    popen = subprocess.Popen(
        [sys.executable, "-m", "shardnet", *map(str, arguments)],
        env=os.environ | {"SHARDNET_HOME": str(tmp_path / "home"), "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with popen:
        try:
            wait_for(lambda: bool(list(scratch.glob("shardnet-verify-*/logits"))), 60)
            children = psutil.Process(popen.pid).children(recursive=True)
            assert children
            yield Proving(popen, children, scratch)
        finally:
            popen.kill()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes a while to prove."""
    return tiny_llama(tmp_path_factory.mktemp("large") / "large.gguf", n_layers=12, n_embd=512, n_heads=8)


@pytest.mark.parametrize("command", ["split", "demo"])
def test_kill_9_takes_the_verifying_process_and_its_scratch_folder_with_it(
    large: Path, tmp_path: Path, command: str
) -> None:
    """The verifying process once computed on for half a minute, and nobody read what it found; the demo's split went on, too."""
    arguments = {"split": ("split", large, "--out", tmp_path / "out"), "demo": ("demo", "--model", large)}
    with proving(tmp_path, *arguments[command]) as running:
        running.popen.kill()
        running.popen.wait(10)
        running.check_nothing_is_left()


@pytest.mark.parametrize("command", ["split", "verify", "demo"])
def test_ctrl_c_while_shards_are_proved_is_130_and_leaves_nothing(large: Path, tmp_path: Path, command: str) -> None:
    """The scratch folder, hundreds of megabytes with a large model, once stayed; and not a word was said."""
    cache = tmp_path / "out"
    arguments: dict[str, tuple[str | Path, ...]] = {
        "split": ("split", large, "--out", cache),
        "demo": ("demo", "--model", large),
    }
    if command == "verify":
        assert shardnet(tmp_path / "home", "split", large, "--out", cache, "--no-verify").code == 0
        arguments["verify"] = ("verify", next(cache.glob("shards/*")), "--source", large)
    with proving(tmp_path, *arguments[command]) as running:
        for child in running.children:
            child.suspend()  # so that it cannot have finished before
        os.killpg(running.popen.pid, signal.SIGINT)  # as a terminal does
        _, errors = running.popen.communicate(timeout=30)
        assert running.popen.returncode == 130
        told = [line for line in errors.splitlines() if " s left" not in line]  # progress of a slow machine
        assert told[-1] == "shardnet: interrupted"
        assert len(told) <= 2, "nothing but what the proof will read, and that it was ended"
        running.check_nothing_is_left()
    assert list(running.scratch.glob("shardnet-demo-*")) == []
    for manifest in cache.glob("shards/*/manifest.json"):
        assert json.loads(manifest.read_text())["certificate"] is None
    assert list(cache.glob("shards/.*")) == []


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- a swarm -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swarm(model: Split, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    with LocalSwarm(tmp_path_factory.mktemp("swarm")) as running:
        running.start_coordinator("--models-cache", str(model.cache))
        running.start_node("a", model.cache)
        running.wait_ready()
        yield running


def post(swarm: LocalSwarm, body: dict[str, Any] | bytes) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    return httpx.post(swarm.api + CHAT, content=content, headers=headers, timeout=30, trust_env=False)


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4} | more


def test_a_prompt_longer_than_the_context_is_wrong_usage(swarm: LocalSwarm) -> None:
    answer = post(swarm, chat(messages=[{"role": "user", "content": "x " * 600}]))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    refused_at_once = shardnet(swarm.home, "generate", "x " * 600)
    assert refused_at_once.code == 2
    assert "shorten the prompt" in refused_at_once.error


def test_a_body_that_is_too_large_gets_its_answer_and_no_broken_connection(swarm: LocalSwarm) -> None:
    answer = post(swarm, chat(messages=[{"role": "user", "content": "a" * 5_000_000}]))
    assert answer.status_code == 413
    assert "larger than" in answer.json()["error"]["message"]
    assert post(swarm, chat()).status_code == 200


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"stop": 5}, "stop"),
        ({"stop": ["a"] * 99}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"n": 0}, "n"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_named_as_the_client_knows_it(
    swarm: LocalSwarm, more: dict[str, Any], param: str
) -> None:
    answer = post(swarm, chat(**more))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{bad", "the body is not JSON: "),
        (b"", "the body is not JSON: "),
        (b"[]", "the body must be an object with keys"),
        (b"\xff", "the body is not JSON: "),
        (b'{"model":' + b"[" * 10_000, "the body is not JSON: "),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(swarm: LocalSwarm, body: bytes, words: str) -> None:
    answer = post(swarm, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(words)


def test_a_peer_without_a_certificate_gets_nothing(swarm: LocalSwarm) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", swarm.listen_port), timeout=10) as plain:
        try:
            with context.wrap_socket(plain) as link:
                link.sendall(b"hello")
                assert link.recv(100) == b""
        except (ssl.SSLError, ConnectionError):
            pass  # refused during the handshake: as good
    refusals = [line for line in swarm.processes["coordinator"].tail if "no certificate of this swarm" in line]
    swarm.wait_for(
        lambda: bool(refusals) or any("no certificate of this swarm" in x for x in swarm.processes["coordinator"].tail),
        10,
        "the refusal's log line",
    )


def test_a_node_of_another_swarm_is_told_what_to_do(swarm: LocalSwarm, tmp_path: Path) -> None:
    with LocalSwarm(tmp_path) as stranger:
        node = stranger.start_node(
            "s", tmp_path / "none", "--coordinator", f"127.0.0.1:{swarm.listen_port}", "--log-format", "pretty"
        )
        stranger.wait_for(lambda: any("belongs to another swarm" in line for line in node.tail), 20, "the refusal")
        line = next(line for line in node.tail if "belongs to another swarm" in line)
        assert "shardnet join TOKEN" in line


def test_a_join_token_lets_in_one_machine_once(swarm: LocalSwarm, tmp_path: Path) -> None:
    token = shardnet(swarm.home, "swarm", "invite").out.strip()
    mistyped = token[:12] + ("B" if token[12] == "A" else "A") + token[13:]
    refused(shardnet(tmp_path / "one", "join", mistyped), 2, "mistyped or cut off")
    assert shardnet(tmp_path / "one", "join", token).code == 0
    refused(shardnet(tmp_path / "two", "join", token), 5, "already used", "shardnet swarm invite")


# -- daemons -------------------------------------------------------------------------------------------------------------------------------


def test_a_damaged_shard_is_refused_at_start(model: Split, tmp_path: Path) -> None:
    damaged = model.copy(tmp_path / "cache") / "shard-1.gguf"
    flip(damaged)
    with LocalSwarm(tmp_path / "swarm") as swarm:
        swarm.start_coordinator("--models-cache", str(model.cache))
        node = swarm.start_node("a", tmp_path / "cache")
        swarm.wait_for(lambda: any("shard-1.gguf" in line for line in node.tail), 30, "the node's refusal")
        answer = post(swarm, chat())
        assert answer.status_code == 503
        assert "layers" in answer.json()["error"]["message"]
        assert int(answer.headers["Retry-After"]) > 0


def test_the_status_says_why_a_model_of_another_swarm_and_a_linked_file_are_not_served(
    model: Split, tmp_path: Path
) -> None:
    folder = model.copy(tmp_path / "cache")
    assert shardnet(tmp_path / "stranger", "swarm", "init").code == 0
    save_manifest(folder, sign_if_owner(load_manifest(folder), tmp_path / "stranger"))
    (folder / "shard-1.gguf").rename(tmp_path / "blob")
    (folder / "shard-1.gguf").symlink_to(tmp_path / "blob")
    with LocalSwarm(tmp_path / "swarm") as swarm:
        swarm.start_coordinator("--models-cache", str(tmp_path / "empty"))
        swarm.start_node("a", tmp_path / "cache")
        swarm.wait_for(lambda: "is not served" in shardnet(swarm.home, "status").out, 30, "the reason")
        told = shardnet(swarm.home, "status").out
        assert "is not served: its manifest is signed by another swarm's owner" in told
        assert "shard-1.gguf is a link" in told


def test_too_little_memory_is_told_in_bytes(model: Split, tmp_path: Path) -> None:
    with LocalSwarm(tmp_path) as swarm:
        swarm.start_coordinator("--models-cache", str(model.cache))
        swarm.start_node("a", model.cache, "--memory-limit", "1MB")

        def told() -> bool:
            return "are missing" in post(swarm, chat()).text

        swarm.wait_for(told, 30, "the coordinator's sentence")
        answer = post(swarm, chat())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_room")
        assert int(answer.headers["Retry-After"]) > 0
        assert "are missing" in shardnet(swarm.home, "status").out
        refused(shardnet(swarm.home, "generate", "hi"), 6, "are missing")


def test_nobody_there_is_exit_code_5(tmp_path: Path) -> None:
    nobody = ("--api", "http://127.0.0.1:1")
    refused(shardnet(tmp_path, "status", *nobody), 5, "no coordinator answers")
    refused(shardnet(tmp_path, "generate", "hi", "--json", *nobody), 5, "no coordinator answers")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tiny",), "name one with --coordinator"),
        (("a" * 64, "--bootstrap", "127.0.0.1:1"), "aaaaaaaaaaaa"),
        (("tiny", "--coordinator", "127.0.0.1:1"), "nothing listens at 127.0.0.1:1"),
    ],
)
def test_a_fetch_that_finds_nobody_is_exit_code_5(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    """It was 3, as if somebody had shown a bad manifest."""
    done = shardnet(tmp_path, "fetch", *arguments, "--out", tmp_path / "out", "--log-level", "error")
    refused(done, 5, "nobody of the swarm can be asked for model", words)
    assert not (tmp_path / "out").exists()


def test_a_fetch_that_finds_nobody_for_the_rest_is_exit_code_5(
    model: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDNET_TORRENT__FIND_HOLDERS_S", "0.3")
    (model.copy(tmp_path / "cache") / "shard-1.gguf").unlink()
    done = shardnet(tmp_path / "home", "fetch", "tiny", "--out", tmp_path / "cache", "--log-level", "error")
    refused(done, 5, "nobody of the swarm can be asked for model tiny")


@pytest.mark.parametrize("flag", ["--listen", "--api", "--enrol"])
def test_a_port_in_use_is_named_with_its_flag(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ports = [part for one in ("--listen", "--api", "--enrol") for part in (one, "127.0.0.1:0")]
        ports[ports.index(flag) + 1] = address
        done = shardnet(tmp_path, "coordinator", "--dht-port", "0", "--log-level", "error", *ports)
    refused(done, 2, "is in use", flag)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_ctrl_c_is_130_and_sigterm_a_clean_leave(model: Split, tmp_path: Path, number: int, code: int) -> None:
    with LocalSwarm(tmp_path) as swarm:
        swarm.start_coordinator("--models-cache", str(model.cache))
        swarm.start_node("a", model.cache)
        swarm.wait_ready()
        for name in ("a", "coordinator"):
            process = swarm.processes.pop(name)
            process.popen.send_signal(number)
            assert end_of(process) == code, list(process.tail)[-5:]
            assert not any("Traceback" in line or "Warning" in line for line in process.tail)


def end_of(process: Process) -> int:
    return process.wait(15)


def test_ctrl_c_before_the_loop_began_warns_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_more: object) -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        raise AssertionError

    monkeypatch.setattr(asyncio, "Runner", interrupted)
    coroutine: Coroutine[Any, Any, None] = main()
    with pytest.raises(KeyboardInterrupt):
        run_loop(coroutine)
    assert coroutine.cr_frame is None  # type: ignore[attr-defined]
