"""What all swarms of real processes on loopback share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _leave_the_dht_soon(_ignore_the_users_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever leaves a swarm last waits on the DHT for answers of those that are gone. How leaving goes is tested with the DHT's own networks."""
    monkeypatch.setenv("SHARDNET_DHT__LEAVE_TIMEOUT_S", "0.3")
