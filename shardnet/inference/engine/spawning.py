"""How an engine process is started, with its two sockets, and what it left behind when it has ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple

from shardnet.children import python_module
from shardnet.errors import EngineError
from shardnet.limits.killing import memory_kills
from shardnet.limits.memory import room_here
from shardnet.scratch import words_file

SOCKET_BUFFER_BYTES = 4 << 20
"""A prompt chunk's hidden states should pass without waiting for the other side."""
PACKETS = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
LAST_WORDS_BYTES = 4096

COMMAND: Sequence[str] = python_module("shardnet.inference.worker.process")
"""The engine process; the descriptors of its two sockets follow."""

CHILD_ENVIRONMENT = {
    # No debugger is started to print a backtrace: that would take seconds, and the last line says why the process ended.
    "GGML_NO_BACKTRACE": "1",
    # How long a thread of llama.cpp's spins for the others before it lets go of its core. The default of some milliseconds is longer than any wait on
    # idle cores, and on busy ones it takes the core from the very thread that is waited for (docs/decisions/0014-threads.md).
    "GOMP_SPINCOUNT": "1000",
}


class Spawned(NamedTuple):
    """A process, and our ends: of the socket for frames, of the one for packets, and the file that its stderr goes to."""

    process: Process
    frames: socket.socket
    packets: socket.socket
    last_words: IO[bytes]


async def spawn(environment: Mapping[str, str]) -> Spawned:
    """Start an engine process.

    Args:
        environment: variables beside, or in place of, those of this process.

    Raises: EngineError if the operating system refuses.
    """
    ours, theirs = socket.socketpair()
    packets, their_packets = socket.socketpair(type=PACKETS)
    last_words = words_file()  # closed by `last_line`
    try:
        with theirs, their_packets:
            for end in (ours, theirs, packets, their_packets):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            process = await asyncio.create_subprocess_exec(
                *COMMAND,
                str(theirs.fileno()),
                str(their_packets.fileno()),
                pass_fds=(theirs.fileno(), their_packets.fileno()),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=last_words,
                env={**CHILD_ENVIRONMENT, **os.environ, **environment},
                start_new_session=True,  # the terminal's signals are the daemon's to answer
            )
    except OSError as error:
        ours.close()
        packets.close()
        last_words.close()
        raise EngineError(f"cannot start the engine process: {error}") from error
    ours.setblocking(False)
    packets.setblocking(False)
    return Spawned(process, ours, packets, last_words)


def was_out_of_memory(code: int | None, kills_before: int) -> bool:
    """Returns: True if the process was killed, and the kernel has killed for want of memory in this group since it counted `kills_before`."""
    return code == -signal.SIGKILL and memory_kills() > kills_before


def how_it_ended(code: int | None, *, out_of_memory: bool = False) -> str:
    """Returns: an exit code in words, or the name of the signal."""
    if out_of_memory:
        bound = room_here().bound
        return f"killed by the kernel for want of memory{f', of which it may have {bound}' if bound else ''}"
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def last_line(file: IO[bytes]) -> str:
    """Returns: the last line that the process wrote to stderr: the reason for its end, if it gave one. Closes the file."""
    with file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""
