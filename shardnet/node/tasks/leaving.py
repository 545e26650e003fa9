"""When a node that leaves has no one left to wait for: its sequences have been freed, or rest, and every task is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sized

QUIET_S = 1.5
"""A leaving node whose sequences see no task for so long has no one to wait for."""


class Leaving:
    """Waits for the end of what is on this node, once it is asked to.

    Args:
        flights, runs, sequences: what is here now, shared with the task runner.
    """

    def __init__(self, flights: Sized, runs: Sized, sequences: Sized) -> None:
        self._flights = flights
        self._runs = runs
        self._sequences = sequences
        self.is_asked = False
        self._idle = asyncio.Event()
        self._quiet: asyncio.TimerHandle | None = None

    async def wait(self) -> None:
        """Return when the node may go. It takes no new sequences from now on, which is for its user to see to."""
        self.is_asked = True
        try:
            self.look()
            await self._idle.wait()
        finally:
            if self._quiet is not None:
                self._quiet.cancel()

    def look(self) -> None:
        """Something has ended here."""
        if not self.is_asked or self._flights or self._runs:
            return
        if not self._sequences:
            self._idle.set()
            return
        if self._quiet is not None:
            self._quiet.cancel()
        self._quiet = asyncio.get_running_loop().call_later(QUIET_S, self._rest)

    def _rest(self) -> None:
        if not self._flights and not self._runs:
            self._idle.set()
