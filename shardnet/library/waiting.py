"""A question that waits while its model is being loaded, and shows how far that is."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

from shardnet.errors import LOADING, PlacementError

ASK_AGAIN_S = 1.0
Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""A title in; a context manager of a function of (done, total) bytes out."""

T = TypeVar("T")


def once_loaded(
    ask: Callable[[Callable[[], None]], T],
    bar: Bar,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> T:
    """Ask again and again as long as the coordinator answers that the model is being loaded. Blocks.

    Args:
        ask: is given what it calls once part of an answer came: the bar goes then, and what fails later is not asked again.

    Returns: what `ask` gives.

    Raises: as `ask`, for everything else.
    """
    has_begun = False
    with ExitStack() as shown:
        show: Callable[[int, int], None] | None = None

        def begins() -> None:
            nonlocal has_begun
            has_begun = True
            shown.close()

        while True:
            try:
                return ask(begins)
            except PlacementError as error:
                done, total = (error.facts.get(f"{LOADING}{name}") for name in ("done_bytes", "total_bytes"))
                if has_begun or not isinstance(done, int) or not isinstance(total, int):
                    raise
                show = show or shown.enter_context(bar("Loading the model"))
                show(done, total)
                pause(ASK_AGAIN_S)
