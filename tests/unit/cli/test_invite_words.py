"""What `swarm invite` says of an address at which nobody would be taken in."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.messages import Address
from shardnet.swarm.addresses import write_coordinator_addresses
from shardnet.swarm.home import Home


@pytest.mark.parametrize(("listens", "is_told"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_a_token_for_others_says_that_the_coordinator_takes_in_this_machine_only(
    home: Path, listens: str, is_told: bool
) -> None:
    assert CliRunner().invoke(app, ["swarm", "init"]).exit_code == 0
    write_coordinator_addresses(Home(home), enrol=Address(host=listens, port=7701))
    invited = CliRunner().invoke(app, ["swarm", "invite", "--address", "10.0.0.5:7701"])
    assert invited.exit_code == 0
    assert ("start it with --enrol 0.0.0.0:7701" in invited.stderr) is is_told
