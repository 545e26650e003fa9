"""Servers of one model over two cores, as processes: shardnet over two nodes, and llama.cpp's own server, alone or over two RPC servers.

Every one of them has the first two cores that we may use, and no others: a node or an RPC server one of them and one thread, all else both. Each ends
with the `with` block, and with its owner, whatever ends that.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil

from shardnet.bench.world import pin_process
from shardnet.errors import DeadlineExceeded, ShardnetError
from shardnet.lifecycle import die_with_parent
from shardnet.local.processes import LocalSwarm
from tests.support.free_ports import free_ports
from tests.support.two_nodes import Halves

CORES = 2
START_S = 300.0
POLL_S = 0.1
STOP_S = 10.0


@dataclass(frozen=True)
class Room:
    """What every server is given: `clients` sequences of at most `context` tokens."""

    clients: int
    context: int


@dataclass(frozen=True)
class Server:
    """One that answers.

    Attributes:
        address: host and port of its OpenAI API.
        parts: the processes that it consists of: name and pid. Their children count as theirs, but for engines, which count as such.
    """

    name: str
    address: tuple[str, int]
    parts: dict[str, int]
    is_ours: bool = False

    def cpu_s(self) -> dict[str, float]:
        """Returns: processor time that each part has used, seconds; of a node the daemon and its engine apart."""
        used: dict[str, float] = {}
        for name, pid in self.parts.items():
            process = psutil.Process(pid)
            used[name] = _cpu_s(process)
            for child in process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    used[f"{name} engine"] = used.get(f"{name} engine", 0.0) + _cpu_s(child)
        return used


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def both_cores() -> list[int]:
    """Returns: the cores that the servers have."""
    return sorted(os.sched_getaffinity(0))[:CORES]


@contextmanager
def shardnet_server(name: str, halves: Halves, folder: Path, room: Room, source: Path | None) -> Iterator[Server]:
    """A coordinator and two nodes, run from another checkout's source if one is named."""
    with LocalSwarm(folder) as swarm:
        with patch.dict(os.environ, {} if source is None else {"PYTHONPATH": str(source.resolve())}):
            halves.start_coordinator(swarm, "--n-seq", str(room.clients), "--n-ctx", str(room.context))
            os.sched_setaffinity(swarm.processes["coordinator"].pid, both_cores())
            for index in range(CORES):
                halves.start_node(swarm, index)
                pin_process(swarm.processes[f"node-{index}"].pid, index)
            swarm.wait_ready(START_S)
        found = urlsplit(swarm.api)
        parts = {part: process.pid for part, process in swarm.processes.items()}
        yield Server(name, (str(found.hostname), int(found.port or 0)), parts, is_ours=True)


@contextmanager
def llama_server(name: str, program: Path, model: Path, room: Room, rpc: Path | None = None) -> Iterator[Server]:
    """llama.cpp's server with two threads; with `rpc`, over two RPC servers of one thread each, which have all layers."""
    port, *rpc_ports = free_ports(1 + (CORES if rpc else 0))
    with tempfile.TemporaryFile() as log:
        started: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for index, rpc_port in enumerate(rpc_ports):
                command = [str(rpc), "-H", "127.0.0.1", "-p", str(rpc_port), "-t", "1"]
                started[f"rpc-{index}"] = one = _start(command, log.fileno())
                pin_process(one.pid, index)
            more = (
                ["--rpc", ",".join(f"127.0.0.1:{rpc_port}" for rpc_port in rpc_ports), "-ngl", "99"]
                if rpc_ports
                else []
            )
            size = ["-np", str(room.clients), "-c", str(room.clients * room.context)]
            threads = ["-t", str(CORES), "-tb", str(CORES)]
            place = ("--host", "127.0.0.1", "--port", str(port))
            command = [str(program), "-m", str(model), *threads, *size, *more, *place]
            started["llama-server"] = server = _start(command, log.fileno())
            os.sched_setaffinity(server.pid, both_cores())
            _wait_healthy(port, server, log.fileno())
            yield Server(name, ("127.0.0.1", port), {part: process.pid for part, process in started.items()})
        finally:
            for process in reversed(started.values()):
                _stop(process)


def _start(command: Sequence[str], log: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )


def _wait_healthy(port: int, process: subprocess.Popen[bytes], log: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            size = os.fstat(log).st_size
            last = os.pread(log, 2000, max(0, size - 2000)).decode(errors="replace").splitlines()[-5:]
            raise ShardnetError(f"llama-server ended with code {process.returncode}: {' | '.join(last)}")
        with suppress(URLError, OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(POLL_S)
    raise DeadlineExceeded(f"waited {START_S:.0f} s in vain for llama-server")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
