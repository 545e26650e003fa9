"""How long batches of rows keep the engine busy, by its own clocks. Lives in the engine process only."""

from __future__ import annotations

import select
import time
from math import ceil

from shardnet.inference.worker.chains import Chains
from shardnet.inference.worker.pacing import Pacing
from shardnet.inference.worker.run_rows import Run


class BusyTime:
    """Tells `pacing` what batches took: all the time since the one before that the engine did not sleep. What comes with each row (links, telling
    the daemon) keeps a stage busy as llama.cpp and sampling do."""

    def __init__(self, chains: Chains, pacing: Pacing) -> None:
        self._chains = chains
        self._pacing = pacing
        self._from_s, self._own_s, self._computed_s = time.perf_counter(), time.thread_time(), 0.0

    def sleep(self, poll: select.poll, wait_s: float | None) -> list[tuple[int, int]]:
        """Wait for something to take. Returns: what there is (descriptor, events).

        Args:
            wait_s: at most; None: nothing waits here for its batch.
        """
        if wait_s == 0.0:
            return poll.poll(0)
        began_s = time.perf_counter()
        ready = poll.poll(None if wait_s is None else ceil(1e3 * wait_s))
        now_s = time.perf_counter()
        self._from_s = now_s if wait_s is None else self._from_s + now_s - began_s
        return ready

    def note(self, run: Run | None, rows: int = 0) -> None:
        """A batch is done.

        A row that is handed on wakes the next stage's engine, and on a machine that runs both, that may take our core before we come to look at the
        clock. Beside computing only our own time counts, unless computing was not done by this thread at all (on a GPU).

        Args:
            run: one of those whose rows it was, in neighbouring slots, and that goes on (else its row may not have been run at all); None: it was
                another batch.
        """
        now_s, own_s, computed_s = time.perf_counter(), time.thread_time(), self._chains.busy_s
        if run is not None and not run.is_over:
            seconds, computing_s = now_s - self._from_s, computed_s - self._computed_s
            running_s = own_s - self._own_s
            if computing_s < running_s < seconds:
                seconds = running_s
            self._pacing.note(run.chain, rows, seconds, 0.0 if run.is_alone else max(0.0, seconds - computing_s))
        self._from_s, self._own_s, self._computed_s = now_s, own_s, computed_s
