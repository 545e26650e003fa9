"""Standard input, output and error, whatever a caller did to them: closed, full, gone, or of an encoding without our letters.

A descriptor 0, 1 or 2 that is closed goes to the first file or socket that a program opens: what is meant for a person would be written into that,
and libuv ends a process that closes such a one as its own. So something is put there first.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

FIRST_FREE = 3


def prepare() -> None:
    """Make the three usable, at the start of a program."""
    for descriptor in range(FIRST_FREE):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: this one
    if sys.stdout is None:
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()
    for stream in (sys.stdout, sys.stderr):
        # A locale that knows no ✓ gets an escape for it.
        with contextlib.suppress(AttributeError, ValueError):  # a test's own stream
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 (as long as the process)


def say(sentence: str) -> None:
    """Write to standard error, if it takes anything."""
    with contextlib.suppress(OSError, ValueError):
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201


def flush() -> None:
    """Have standard output written now, where its failure can still be told. Raises: OSError."""
    sys.stdout.flush()


def give_up_output() -> None:
    """Nobody takes standard output: what is left of it is dropped, which Python would try to write at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
