"""How benches that start processes end: whatever ends them, nothing is left behind, and the exit code says what it was."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from shardnet.errors import ShardnetError

EXIT_INTERRUPTED = 130


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
