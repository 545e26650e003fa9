"""A coordinator that was started before shardnet was brought up to date is told as that."""

from __future__ import annotations

import pytest

from shardnet.cli.status import in_words
from shardnet.errors import ProtocolError


def test_a_coordinator_of_another_version_is_named_and_no_traceback_is_shown() -> None:
    with pytest.raises(
        ProtocolError, match=r"another version of shardnet than this command: it does not tell '\w+'; start it again"
    ):
        in_words({})
