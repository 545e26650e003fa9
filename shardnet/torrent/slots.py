"""How many peers a seed serves at once. Pure.

One, as long as that fills the line. Downloaders ask a seed for what nobody else has yet, so one of them served at full speed gets only fresh pieces
and passes them on; several served side by side ask for the same ones. Measured on loopback with five downloaders of 98 MB: 1.03 times the file sent
with one slot, 1.8 with two, 2.8 with the library's eight; and it is quicker, too. libtorrent hands the slot round (each peer keeps it for a minute at
most while others wait), but a slow peer would leave the line idle for that minute: then another slot is opened.

(libtorrent's super-seeding sends 1.01 times the file, but waits ten seconds before its first piece, and serves a lone downloader at a tenth of the
speed.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

WINDOW_S = 5.0
"""Long enough for a peer to be unchoked and for TCP to get up to speed."""

IDLE_FRACTION = 0.5
"""A line that carries less than this share of the most it was seen to carry has room for another peer."""

FIRST_SLOTS = 1


@dataclass(frozen=True, slots=True)
class SeedReading:
    """One seed at one moment."""

    uploaded_bytes: int
    downloaders: int
    """Connected peers that lack pieces."""


@dataclass(slots=True)
class UploadSlots:
    """Widens the slots of seeds whose line idles while peers wait. Never narrows them: libtorrent cannot go back to one slot.

    Invariants: `slots` names only seeds that were in the last reading, with more than `FIRST_SLOTS` and at most `most`.
    """

    most: int
    slots: dict[str, int] = field(default_factory=dict)
    best_rate: float = 0.0
    _since_s: float | None = None
    _then: dict[str, int] = field(default_factory=dict)

    def observe(self, at_s: float, seeds: Mapping[str, SeedReading]) -> str | None:
        """Take one reading.

        Args:
            at_s: monotonic seconds.
            seeds: all seeds of the session, by info-hash.
        Returns: the seed whose slots are to be widened to `slots[seed]` now, or None.
        """
        self.slots = {seed: count for seed, count in self.slots.items() if seed in seeds}
        waiting = [seed for seed, now in seeds.items() if now.downloaders > self.slots.get(seed, FIRST_SLOTS)]
        if self._since_s is None or not waiting:
            self._begin(at_s, seeds)
            return None
        elapsed = at_s - self._since_s
        if elapsed < WINDOW_S:
            return None
        sent = {seed: now.uploaded_bytes - self._then.get(seed, now.uploaded_bytes) for seed, now in seeds.items()}
        rate = sum(sent.values()) / elapsed
        self.best_rate = max(self.best_rate, rate)
        self._begin(at_s, seeds)
        slowest = min(waiting, key=lambda seed: (sent[seed], seed))
        count = min(self.most, 2 * self.slots.get(slowest, FIRST_SLOTS))
        if 0 < rate >= IDLE_FRACTION * self.best_rate or count == self.slots.get(slowest, FIRST_SLOTS):
            return None
        self.slots[slowest] = count
        return slowest

    def _begin(self, at_s: float, seeds: Mapping[str, SeedReading]) -> None:
        self._since_s = at_s
        self._then = {seed: now.uploaded_bytes for seed, now in seeds.items()}
