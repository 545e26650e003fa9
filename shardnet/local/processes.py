"""Coordinator and nodes as child processes that never outlive their owner.

Each child is a session of its own, so that Ctrl-C reaches the owner alone, which then stops them in order; and each asks the kernel to end it
when the owner dies, so that even `kill -9` leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from shardnet.children import python_module
from shardnet.errors import DeadlineExceeded, ShardnetError
from shardnet.lifecycle import EXIT_WITH_PARENT
from shardnet.swarm.addresses import read_coordinator_addresses
from shardnet.swarm.home import Home

OnLine = Callable[[str, str], None]
"""`(process name, log line)`."""

POLL_S = 0.05
DIRECT = build_opener(ProxyHandler({}))
"""A proxy that the environment names is for other machines."""
STOP_TIMEOUT_S = 10.0


class Process:
    """One running daemon and the last lines it logged."""

    def __init__(
        self, name: str, arguments: list[str], environment: dict[str, str], on_line: OnLine, prefix: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.tail: deque[str] = deque(maxlen=400)
        self._on_line = on_line
        self.popen = subprocess.Popen(
            [*prefix, *python_module("shardnet"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"log of {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.tail.append(line.rstrip("\n"))
            self._on_line(self.name, line.rstrip("\n"))

    @property
    def pid(self) -> int:
        return self.popen.pid

    def check(self) -> None:
        """Raises: ShardnetError with the last lines if the process has ended."""
        if self.popen.poll() is not None:
            self._reader.join(1)
            last = " | ".join(list(self.tail)[-5:])
            raise ShardnetError(f"{self.name} ended with code {self.popen.returncode}: {last}")

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        self.popen.kill()
        self.popen.wait()
        self._close()

    def terminate(self) -> None:
        """Ask it to drain and leave."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int:
        """Wait for its end, and end it if it takes too long. Returns: its exit code."""
        try:
            self.popen.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self._close()
        return int(self.popen.returncode)

    def _close(self) -> None:
        self._reader.join(2)
        if self.popen.stdout is not None:
            self.popen.stdout.close()


class LocalSwarm:
    """One coordinator and any number of nodes on this machine, with a home folder of their own. Use as a context manager."""

    def __init__(
        self, folder: Path, on_line: OnLine = lambda _name, _line: None, *, log_format: str = "pretty"
    ) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.processes: dict[str, Process] = {}
        self._on_line = on_line
        self._log_format = log_format

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(
        self, name: str, *arguments: str, env: dict[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> Process:
        """Start `shardnet ARGUMENTS...` in this swarm, by way of the command `prefix`, which becomes it."""
        environment = os.environ | {"SHARDNET_HOME": str(self.home), EXIT_WITH_PARENT: str(os.getpid())} | (env or {})
        process = Process(name, [*arguments, "--log-format", self._log_format], environment, self._on_line, prefix)
        self.processes[name] = process
        return process

    def start_coordinator(self, *arguments: str) -> Process:
        """Start the coordinator, on free ports where `arguments` name none, and wait until its API answers."""
        Home(self.home).coordinator.unlink(missing_ok=True)
        free = [flag for flag in ("--listen", "--api", "--enrol") if flag not in arguments]
        ports = [part for flag in free for part in (flag, "127.0.0.1:0")]
        ports += [] if "--dht-port" in arguments else ["--dht-port", "0"]
        process = self.start("coordinator", "coordinator", *ports, *arguments)
        self.wait_for(lambda: self._health() is not None, 60, "the coordinator's API")
        return process

    def start_node(
        self,
        name: str,
        models_cache: Path,
        *arguments: str,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> Process:
        """Start a node that joins this swarm's coordinator, on a free port where `arguments` name none."""
        listen = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
        whole = ("node", "--name", name, *listen, "--models-cache", str(models_cache), *arguments)
        return self.start(name, *whole, env=env, prefix=prefix)

    @property
    def api(self) -> str:
        """Returns: base URL of the OpenAI API, empty before the coordinator has written it down."""
        address = read_coordinator_addresses(Home(self.home)).api
        return f"http://{address}" if address is not None else ""

    @property
    def listen_port(self) -> int:
        """Returns: the port where nodes join."""
        address = read_coordinator_addresses(Home(self.home)).nodes
        return address.port if address is not None else 0

    def get(self, path: str) -> Any:
        """Returns: the JSON of an API path, also of an answer that is an error."""
        try:
            with DIRECT.open(self.api + path, timeout=5) as answer:
                return json.load(answer)
        except URLError as error:
            body = getattr(error, "read", bytes)()
            return json.loads(body) if body else None

    def _health(self) -> dict[str, Any] | None:
        """Returns: what the API says of itself; None while it does not answer."""
        try:
            found: dict[str, Any] | None = self.get("/healthz") if self.api else None
        except (OSError, ValueError):
            return None
        return found

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Wait until the coordinator serves a model."""
        self.wait_for(lambda: bool((self._health() or {}).get("ready")), timeout_s, "a complete pipeline")

    def wait_for(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Poll until `condition` holds.

        Raises: ShardnetError if a process ends meanwhile; DeadlineExceeded naming `what`.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            for process in self.processes.values():
                process.check()
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"waited {timeout_s:.0f} s in vain for {what}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Stop every process: nodes first, so that they can say good-bye; what does not go in time is killed."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        order = sorted(self.processes.values(), key=lambda process: process.name == "coordinator")
        for process in order:
            process.terminate()
        for process in order:
            process.wait(deadline - time.monotonic())
        self.processes.clear()
