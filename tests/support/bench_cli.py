"""What the commands of benches share: lists of words, how far a run is, and how it ends: whatever ends it, nothing is left behind, and the exit code
says what it was."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence

from shardnet.__main__ import EXIT_INTERRUPTED
from shardnet.errors import ShardnetError


def listed(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Returns: for argparse, what reads a list of such words; an empty one has none."""

    def read(text: str) -> list[str]:
        found = [part for part in text.split(",") if part]
        if wrong := sorted(set(found) - set(known)):
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: not among {', '.join(known)}")
        return found

    return read


def progress(line: str) -> None:
    """Tell on standard error how far it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def exit_code_of(run: Callable[[], None]) -> int:
    """Run a bench. Returns: 0, an error's own code when it was told, or that of an interrupt: Ctrl-C, or SIGTERM, which is the same here."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run()
    except ShardnetError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0
