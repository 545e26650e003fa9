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


def figures(done: int, total: int, rate: float | None) -> str:
    """Returns: `45 % of 98.4 MB, 12.1 MB/s, 4 s left`; what is not known yet is left out. `rate`: of `done`, a second."""
    if not total:
        return ""
    told = f"{100 * done / total:.0f} %"
    is_bytes = total >= LEAST_BYTES
    if is_bytes:
        told += f" of {human_bytes(total)}"
    if not rate or rate <= 0 or done >= total:
        return told
    left = f", {(total - done) / rate:.0f} s left"
    return f"{told}, {human_bytes(rate)}/s{left}" if is_bytes else told + left


@contextmanager
def byte_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total). Safe to call from several threads."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.text import Text

        class Figures(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(figures(int(task.completed), int(task.total or 0), task.speed))

        columns = (TextColumn("{task.description}"), BarColumn(), Figures())
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
        sys.stderr.write(f"{title}: {figures(done, total, rate)}\n")
        sys.stderr.flush()

    yield line
