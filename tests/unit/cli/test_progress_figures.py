"""What a bar says beside itself: what is known, and no marks in place of what is not."""

from __future__ import annotations

import pytest

from shardnet.cli.progress import figures

MB = 1_000_000


@pytest.mark.parametrize(
    ("done", "total", "rate", "told"),
    [
        (0, 0, None, ""),
        (0, 98 * MB, None, "0 % of 98.0 MB"),
        (49 * MB, 98 * MB, 0.0, "50 % of 98.0 MB"),
        (49 * MB, 98 * MB, 12.1e6, "50 % of 98.0 MB, 12.1 MB/s, 4 s left"),
        (98 * MB, 98 * MB, 12.1e6, "100 % of 98.0 MB"),
        (250, 1000, 50.0, "25 %, 15 s left"),
    ],
)
def test_a_figure_that_is_not_known_yet_is_left_out(done: int, total: int, rate: float | None, told: str) -> None:
    assert figures(done, total, rate) == told
