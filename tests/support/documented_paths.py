"""A page of docs/ that a reader follows from top to bottom, followed: each shell block in a terminal of its own, on the machine of the heading.

A ```text block behind it holds lines that have to be printed, in that order; `…` stands for anything. A block that ends with a daemon stays, and the
next one begins once its lines came; every other one has to end with success. TOKEN stands for a join token that was printed before.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DAEMONS = ("shardnet coordinator", "shardnet node")
HEADING = re.compile(r"^##+ .*?\b[Oo]n (?P<machine>alpha|beta|gamma)\b")
FENCE = re.compile(r"^```(?P<kind>\w*)$")
TOKEN = re.compile(r"SHARD1-[A-Z2-7]+")
STYLE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
LIMIT_S = 60.0


@dataclass(slots=True)
class Step:
    """One shell block, and the lines that it has to print."""

    machine: str
    section: str
    commands: str
    expected: list[str] = field(default_factory=list)

    @property
    def stays(self) -> bool:
        """True if it ends with a daemon."""
        return self.commands.splitlines()[-1].startswith(DAEMONS)


def steps_of(page: Path) -> list[Step]:
    """Returns: the page's shell blocks in order."""
    steps: list[Step] = []
    machine, section, kind = "", "", ""
    block: list[str] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = FENCE.match(line)
        if fence and kind:
            if kind == "sh":
                steps.append(Step(machine, section, "\n".join(block)))
            elif kind == "text":
                steps[-1].expected = block
            kind = ""
        elif fence:
            kind, block = fence["kind"] or "?", []
        elif kind:
            block.append(line)
        elif line.startswith("#"):
            section = line.lstrip("# ")
            named = HEADING.match(line)
            machine = named["machine"] if named else machine
    return steps


def _pattern(line: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in line.strip().split("…")))


@dataclass
class Terminal:
    """A process with a terminal of its own, and what it printed."""

    step: Step
    process: subprocess.Popen[bytes]
    screen: int
    printed: str = ""

    def missing(self) -> list[str]:
        """Returns: expected lines that did not come, from the first one on that is not there."""
        place = 0
        for number, line in enumerate(self.step.expected):
            found = _pattern(line).search(self.printed, place)
            if found is None:
                return self.step.expected[number:]
            place = found.end()
        return []

    def read(self, wait_s: float) -> bool:
        """Take what it printed within so long. Returns: False once there will be no more."""
        if not select.select([self.screen], [], [], wait_s)[0]:
            return True
        try:
            data = os.read(self.screen, 65536)
        except OSError:  # its last process has closed it
            return False
        self.printed += STYLE.sub("", data.decode(errors="replace")).replace("\r\n", "\n")
        return bool(data)

    def follow(self) -> None:
        """Wait until its lines came, and unless it stays, for its end. Raises: AssertionError."""
        deadline_s = time.monotonic() + LIMIT_S
        goes_on = True
        while goes_on and time.monotonic() < deadline_s and not (self.step.stays and not self.missing()):
            goes_on = self.read(0.2)
        told = f"`{self.step.commands}` printed\n{self.printed}"
        if not self.step.stays:
            assert self.process.wait(timeout=10) == 0, told
        assert not self.missing(), f"{self.missing()} did not come: {told}"

    def interrupt(self) -> int:
        """Press Ctrl-C. Returns: the exit code."""
        os.write(self.screen, b"\x03")
        deadline_s = time.monotonic() + LIMIT_S
        while self.read(0.2) and self.process.poll() is None and time.monotonic() < deadline_s:
            pass
        return self.process.wait(timeout=10)


class Reader:
    """Follows pages.

    Args:
        prefixes: what makes a command run on a machine.
        folders: each machine's, in which it works and has its home.
    """

    def __init__(self, prefixes: dict[str, tuple[str, ...]], folders: dict[str, Path], path: str) -> None:
        self._prefixes, self._folders, self._path = prefixes, folders, path
        self._running: list[Terminal] = []
        self._tokens: list[str] = []

    def follow(self, steps: list[Step]) -> Iterator[Terminal]:
        """Do what they say. Yields: each one's terminal when its lines came."""
        for step in steps:
            if "TOKEN" in step.commands.split():
                step.commands = re.sub(r"\bTOKEN\b", self._tokens.pop(0), step.commands)
            terminal = self._open(step)
            self._running.append(terminal)
            terminal.follow()
            self._tokens += TOKEN.findall(terminal.printed)
            yield terminal

    def _open(self, step: Step) -> Terminal:
        folder = self._folders[step.machine]
        ours, theirs = pty.openpty()
        try:
            process = subprocess.Popen(
                [*self._prefixes[step.machine], "bash", "-ec", step.commands],
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                cwd=folder,
                env={"HOME": str(folder), "PATH": self._path, "TERM": "xterm", "LANG": "C.UTF-8", "COLUMNS": "200"},
                start_new_session=True,
                preexec_fn=lambda: _own_terminal(theirs),
            )
        finally:
            os.close(theirs)
        return Terminal(step, process, ours)

    def leave(self) -> list[int]:
        """Press Ctrl-C in every terminal, the last one first. Returns: the daemons' exit codes."""
        return [terminal.interrupt() for terminal in reversed(self._running) if terminal.step.stays]

    def close(self) -> None:
        """Leave no process behind, whatever happened."""
        for terminal in self._running:
            if terminal.process.poll() is None:
                os.killpg(terminal.process.pid, signal.SIGKILL)
                terminal.process.wait()
            os.close(terminal.screen)


def _own_terminal(descriptor: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
