"""Many requests with beginnings in common, messages in any order, clients that go, nodes that are killed: every answer is that of a request alone.

And nothing is left: nobody waits, nothing is pinned, no place is taken, no stage has KV of anybody; and copying was not given up.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.generation_spec import GenerationSpec
from shardnet.coordinator.requests.prefixes import Prefixes
from shardnet.coordinator.requests.running import Running
from shardnet.coordinator.requests.speculation import ModelSpeculation
from shardnet.coordinator.text.answering import PlainStream
from shardnet.errors import PlacementError
from shardnet.messages import Sampling
from tests.support.coordinator_world import MODEL_ID, route
from tests.support.sharing_stages import Stages, answer_alone

A, B, C = ([first + index for index in range(count)] for first, count in ((1000, 40), (1100, 26), (1200, 33)))
BEGINNINGS: tuple[list[int], ...] = (A, A + B, A + B + C, A[:10], C, A + C, [])


class Storm:
    """What happens to one swarm, all of it by one seed."""

    def __init__(self, seed: int, *, nodes_die: bool) -> None:
        self.random = random.Random(seed)
        n_seq = self.random.choice((1, 2, 3, 4, 8))
        numbers = self.random.choice((((1, 2),), ((1, 2), (3, 4)), ((1, 2), (1, 4))))
        self.stages = Stages([route(*one, n_seq=n_seq, n_batch=64, n_ctx=1024) for one in numbers], self.random)
        self.prefixes = Prefixes(16, max_wait_s=self.random.choice((1.0, 60.0)))
        foretells = self.random.random() < 0.3
        self.requests = self.stages.requests = Requests(
            self.stages,
            max_queued=1000,
            queue_timeout_s=1e6,
            prefixes=self.prefixes,
            make_speculation=(lambda: ModelSpeculation(4, 2, 4, 8)) if foretells else None,
        )
        self.asked: list[tuple[asyncio.Task[Running], list[int], int, int]] = []
        self.closed: set[Running] = set()
        self._nodes = [node for one in self.stages.all for node in one.node_ids] if nodes_die else []

    def ask(self) -> None:
        """Somebody asks for something that begins like what others ask for."""
        choice = self.random.choice
        own = [2000 + self.random.randrange(500) for _ in range(choice((0, 1, 3, 8, 12, 40)))]
        prompt, count, seed = (choice(BEGINNINGS) + own) or [5], choice((1, 2, 5)), self.random.randrange(3)
        spec = GenerationSpec(MODEL_ID, prompt, Sampling(seed=seed), count, lambda _token: False)
        opening = asyncio.ensure_future(self.requests.open(spec, PlainStream(lambda _token: b"x", ())))
        self.asked.append((opening, prompt, count, seed))

    def opened(self) -> list[Running]:
        return [one.result() for one, *_ in self.asked if one.done() and one.exception() is None]

    def close(self) -> None:
        """A client goes away."""
        one = self.random.choice(self.opened() or [None])
        if one is not None and not one.generation.is_done:
            self.closed.add(one)
            one.close()

    def happen(self) -> None:
        """Something does."""
        kind, stages = self.random.random(), self.stages
        if kind < 0.12:
            self.ask()
        elif kind < 0.15:
            self.close()
        elif kind < 0.17:
            stages.at_s += self.random.choice((0.2, 2.0))
            self.requests.on_time()
        elif kind < 0.18 and self._nodes:
            node = self.random.choice(self._nodes)
            if node in stages.down | stages.loading:
                stages.return_(node)
            elif self.random.random() < 0.7:
                stages.lose(node)
            else:
                stages.crash(node)
        else:
            stages.deliver()

    def collect(self) -> None:
        """Clients take what is there."""
        for one in self.opened():
            while one.generation.is_done and not one.is_over:
                one.take()

    async def end(self) -> None:
        """Everything is there again, and everybody gets their answer."""
        for node in sorted(self.stages.down | self.stages.loading):
            self.stages.return_(node)
        while True:
            await asyncio.sleep(0)
            self.stages.settle()
            self.collect()
            if self.requests.idle.is_set() and all(one.done() for one, *_ in self.asked):
                return
            self.stages.at_s += 0.1
            self.requests.on_time()

    def check(self) -> None:
        for opening, prompt, count, seed in self.asked:
            if isinstance(opening.exception(), PlacementError):
                continue  # there was no pipeline when it was asked
            one = opening.result()
            if one not in self.closed:
                assert one.generation.error is None
                assert list(one.generation.tokens[len(prompt) :]) == answer_alone(prompt, count, seed)
        assert self.requests.waiting == 0
        assert self.prefixes.waits == self.prefixes.waited.count
        assert not self.prefixes._pins
        assert not self.requests._places.used
        assert self.prefixes.copies_of(MODEL_ID)
        self.requests.fail_all()
        self.stages.settle()
        assert self.stages.sequences == 0


@pytest.mark.parametrize("nodes_die", [False, True])
@pytest.mark.parametrize("seeds", [range(10), range(10, 20)])
async def test_every_answer_is_that_of_a_request_alone_and_nothing_is_left(
    seeds: range, *, nodes_die: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_PAUSE_S", "MOST_PAUSE_S"):
        monkeypatch.setattr(f"shardnet.coordinator.requests.setbacks.{name}", 1e-9)  # the next turn of the event loop
    for seed in seeds:
        storm = Storm(seed, nodes_die=nodes_die)
        for _ in range(200):
            storm.happen()
            await asyncio.sleep(0)
            storm.collect()
        await storm.end()
        storm.check()
        assert nodes_die or storm.prefixes.refused == 0
