"""`shardnet chat` and `status --watch` as people use them: in a terminal, and in a pipe, beside a real swarm."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet.local.processes import LocalSwarm
from tests.support.two_nodes import tiny_halves

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

WAIT_S = 30.0
STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, arguments: list[str], env: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shardnet", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env | {"TERM": "xterm"},
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def wait_for(self, text: str) -> None:
        """Read until a text is shown that was not shown before; then it counts as seen."""
        end = time.monotonic() + WAIT_S
        while text not in self.shown:
            assert time.monotonic() < end, f"{text!r} is not in {self.shown!r}"
            if select.select([self._master], [], [], 0.5)[0]:
                self.shown = STEERING.sub("", self.shown + os.read(self._master, 65536).decode(errors="replace"))
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def close(self) -> int:
        """Returns: its exit code. It is killed if it does not leave."""
        try:
            return self.process.wait(WAIT_S)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._master)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    folder = tmp_path_factory.mktemp("swarm")
    halves = tiny_halves(folder)
    with LocalSwarm(folder / "swarm") as swarm:
        halves.serve(swarm)
        yield swarm


@pytest.fixture
def env(swarm: LocalSwarm, tmp_path: Path) -> dict[str, str]:
    return os.environ | {"SHARDNET_API": swarm.api, "SHARDNET_HOME": str(tmp_path / "home")}


def piped(env: dict[str, str], text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shardnet", "chat", *arguments]
    return subprocess.run(command, input=text, env=env, capture_output=True, text=True, timeout=WAIT_S, check=False)


def test_a_conversation_in_a_terminal(env: dict[str, str], tmp_path: Path) -> None:
    kept = tmp_path / "talk.json"
    terminal = Terminal(["chat"], env)
    try:
        terminal.wait_for("/help lists the commands")
        terminal.type("/set max_tokens 5\n")
        terminal.type("/set ignore_eos true\n")
        terminal.type("hello\n")
        terminal.wait_for("5 tokens, ")
        terminal.wait_for("node-0 [0, ")
        terminal.wait_for("→ node-1 [")
        terminal.type("/modell\n")
        terminal.wait_for("is /model meant?")
        terminal.type("/undo\n")
        terminal.wait_for("taken back: hello")
        terminal.type("again \\\n")
        terminal.type("and again\n")
        terminal.wait_for("5 tokens, ")
        terminal.type(f"/save {kept}\n")
        terminal.wait_for("saved: ")
        terminal.wait_for("> ")  # before the prompt is there, an end of input may be lost with the terminal's mode
        terminal.type("\x04")
    finally:
        code = terminal.close()
    assert code == 0
    said = [one["content"] for one in json.loads(kept.read_text())["messages"] if one["role"] == "user"]
    assert said[0] == "again \nand again"
    assert "hello" in (tmp_path / "home" / "chat_history").read_text()


def test_an_answer_is_broken_off_by_ctrl_c_and_the_chat_goes_on(env: dict[str, str]) -> None:
    terminal = Terminal(["chat", "tell me"], env)
    try:
        terminal.wait_for("Ctrl-D leaves")
        terminal.wait_for("…")
        terminal.interrupt()
        terminal.type("/help\n")
        terminal.wait_for("this list")
        terminal.type("/quit\n")
    finally:
        assert terminal.close() == 0


def test_text_in_a_pipe_is_one_message_and_the_answer_is_all_that_is_printed(
    env: dict[str, str], tmp_path: Path
) -> None:
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps({"messages": [], "options": {"max_tokens": 4, "temperature": 0, "ignore_eos": True}}))
    first, again = (piped(env, "hello", "--load", str(asked)) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    assert first.stderr == ""
    assert "tokens/s" not in first.stdout


@pytest.mark.parametrize(
    ("text", "arguments", "code", "what"),
    [
        ("", (), 2, "there is nothing to say"),
        ("x", ("--model", "nope"), 2, "known are: tiny"),
        ("x", ("--load", "/nowhere/talk.json"), 2, "cannot be read"),
        ("x", ("--api", "ftp://x"), 2, "not reached by ftp"),
    ],
)
def test_what_cannot_be_asked_is_told(
    env: dict[str, str], text: str, arguments: tuple[str, ...], code: int, what: str
) -> None:
    told = piped(env, text, *arguments)
    assert told.returncode == code
    assert what in told.stderr
    assert "Traceback" not in told.stderr


def test_the_status_is_watched_until_ctrl_c(env: dict[str, str]) -> None:
    terminal = Terminal(["status", "--watch", "--every", "0.2"], env)
    try:
        terminal.wait_for("Model tiny")
        terminal.wait_for("█")
        terminal.wait_for("Model tiny")  # and again
        terminal.interrupt()
    finally:
        assert terminal.close() == 0
