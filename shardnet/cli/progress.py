"""Progress on standard error: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shardnet.log import human_bytes

LINE_EVERY_S = 5.0
LEAST_BYTES = 1 << 20
"""What is less is no count of bytes but of thousandths of some work."""


def say(sentence: str) -> None:
    """Write a line where the bars are."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def say_where(model: str) -> None:
    """Say at once which server is asked for a model: one that does not answer, or is not there, is waited for a while."""
    from shardnet.inference.remote.address import is_url, parse_address

    if is_url(model):
        _, host, port = parse_address(model).origin
        say(f"Connecting to {host}:{port}")


@contextmanager
def byte_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total). Safe to call from several threads."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last, last_done = time.monotonic(), 0

    def line(done: int, total: int) -> None:
        nonlocal last, last_done
        now = time.monotonic()
        if now - last < LINE_EVERY_S or done <= last_done:
            return
        rate = (done - last_done) / (now - last)
        last, last_done = now, done
        shown = f"{human_bytes(rate)}/s, " if total >= LEAST_BYTES else ""
        sys.stderr.write(f"{title}: {100 * done / total:.0f} %, {shown}{(total - done) / rate:.0f} s left\n")
        sys.stderr.flush()

    yield line
