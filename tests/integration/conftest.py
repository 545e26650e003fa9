"""What all swarms of real processes on loopback share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _leave_the_dht_soon() -> Iterator[None]:
    """Whoever leaves a swarm last waits on the DHT for answers of those that are gone. How leaving goes is tested with the DHT's own networks."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SHARDNET_DHT__LEAVE_TIMEOUT_S", "0.3")
        yield
