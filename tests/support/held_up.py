"""An engine process that stands still, so that what is sent to it waits together however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from shardnet.inference.engine.host import EngineProcess


@contextmanager
def held_up(engine: EngineProcess) -> Iterator[None]:
    """The engine process stands still: whatever is sent to it waits."""
    assert engine.pid is not None
    process = psutil.Process(engine.pid)
    process.suspend()
    try:
        while process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        yield
    finally:
        process.resume()
