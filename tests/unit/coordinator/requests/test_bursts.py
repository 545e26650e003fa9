"""Prompts that come together: in which chunks each of them goes."""

from __future__ import annotations

from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.generation_spec import GenerationSpec
from shardnet.coordinator.text.answering import PlainStream
from shardnet.messages import ExecuteTask, Sampling
from tests.support.coordinator_world import MODEL_ID, route
from tests.support.requests_world import World, result


class Swarm:
    """Requests over two nodes, of which only the steps are looked at."""

    def __init__(self) -> None:
        self.world = World(route(1, 2, n_seq=8, n_batch=128, n_ctx=1024), chunk=16, together=64)
        self.requests = Requests(self.world)

    async def ask(self, n_prompt: int) -> list[ExecuteTask]:
        """Begin a request. Returns: the steps that leave with it."""
        spec = GenerationSpec(MODEL_ID, range(n_prompt), Sampling(), 9, lambda _token: False)
        await self.requests.open(spec, PlainStream(lambda _token: b"x", ()))
        return self.world.take()[0]


def rows(steps: list[ExecuteTask]) -> list[int]:
    return [step.n_tokens for step in steps]


async def test_short_prompts_that_come_together_go_in_one_chunk_each_and_long_ones_in_small_ones() -> None:
    swarm = Swarm()
    await swarm.ask(40)
    assert rows(await swarm.ask(40)) == [40]
    assert rows(await swarm.ask(100)) == [16, 16, 16, 16, 16, 20]


async def test_beside_an_answer_a_short_prompt_goes_in_small_chunks() -> None:
    swarm = Swarm()
    first = (await swarm.ask(40))[-1]
    swarm.requests.on_result(first.route[-1].node_id, result(first, 50, ahead=8))
    assert rows(await swarm.ask(40)) == [16, 16, 8]
