"""`shardnet ARGUMENTS...` with an event loop that tells how long it was held, for benches: `python -m tests.support.probed_loop FILE ARGUMENTS...`.

FILE gets a line `END_S HELD_MS CPU_MS` for each time that a timer of one millisecond came more than `TOLD_MS` late: when (monotonic clock), how
late, and what processor time the process took since the timer before. It comes late where a callback is long, and where another thread keeps the
interpreter's lock: either way nobody is served meanwhile. It comes late too where other processes have the processors; then its own time is less.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TextIO

from shardnet import lifecycle
from shardnet.__main__ import main

EVERY_S = 0.001
TOLD_MS = 4.0


def probed(loop: asyncio.AbstractEventLoop, told: TextIO) -> asyncio.AbstractEventLoop:
    """Returns: the loop, watched."""

    def tick(due_s: float, used_s: float) -> None:
        now_s = time.monotonic()
        if (late_ms := (now_s - due_s) * 1e3) > TOLD_MS:
            told.write(f"{now_s:.6f} {late_ms:.3f} {(time.process_time() - used_s) * 1e3:.3f}\n")
            told.flush()
        loop.call_later(EVERY_S, tick, time.monotonic() + EVERY_S, time.process_time())

    loop.call_soon(tick, time.monotonic(), time.process_time())
    return loop


def run() -> None:
    """The command line."""
    path, made = Path(sys.argv.pop(1)), lifecycle.new_loop
    path.parent.mkdir(parents=True, exist_ok=True)
    told = path.open("a")
    lifecycle.new_loop = lambda: probed(made(), told)
    main()


if __name__ == "__main__":
    run()
