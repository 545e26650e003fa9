"""A question waits while its model is being loaded, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from shardnet.errors import PlacementError
from shardnet.library.waiting import once_loaded

shown: list[tuple[int, int]] = []


@contextmanager
def bar(_title: str) -> Iterator[Callable[[int, int], None]]:
    shown.append((-1, -1))
    yield lambda done, total: shown.append((done, total))
    shown.append((-2, -2))


def asks(*answers: str | Exception, begun: bool = False) -> Callable[[Callable[[], None]], str]:
    left = iter(answers)

    def ask(begins: Callable[[], None]) -> str:
        answer = next(left)
        if begun or isinstance(answer, str):
            begins()
            shown.append((0, 0))
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


def loading(done: int) -> PlacementError:
    return PlacementError("is being loaded", loading_done_bytes=done, loading_total_bytes=10)


def test_it_is_asked_again_until_the_model_is_there() -> None:
    shown.clear()
    waits: list[float] = []
    assert once_loaded(asks(loading(1), loading(7), "yes"), bar, pause=waits.append) == "yes"
    assert shown == [(-1, -1), (1, 10), (7, 10), (-2, -2), (0, 0)]  # the bar is gone before the answer begins
    assert len(waits) == 2


def test_nothing_is_shown_where_nothing_is_waited_for() -> None:
    shown.clear()
    assert once_loaded(asks("yes"), bar) == "yes"
    assert shown == [(0, 0)]


def test_what_no_waiting_mends_is_told_at_once() -> None:
    with pytest.raises(PlacementError, match="no node"):
        once_loaded(asks(PlacementError("no node is connected")), bar)


def test_half_an_answer_is_not_asked_again() -> None:
    with pytest.raises(PlacementError):
        once_loaded(asks(loading(1), "twice", begun=True), bar)
