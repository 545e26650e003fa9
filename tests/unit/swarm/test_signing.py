"""The owner's signature on manifests."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardnet.errors import SettingsError
from shardnet.swarm.home import Home
from shardnet.swarm.identity import ensure_swarm, open_swarm
from shardnet.swarm.signing import sign, sign_if_owner, signature_is_valid
from tests.support.golden_messages import MANIFEST


def test_the_owner_signs_and_any_member_can_check(home: Path) -> None:
    swarm = ensure_swarm(Home(home))
    signed = sign_if_owner(MANIFEST)
    assert signature_is_valid(signed, swarm.ca_pem)
    assert signature_is_valid(signed, swarm.ca)
    assert signed.model_copy(update={"signature": None}) == MANIFEST
    assert sign_if_owner(signed, home) == signed, "the same input gives the same bytes"


def test_without_a_swarm_or_its_key_nothing_is_signed(home: Path) -> None:
    assert sign_if_owner(MANIFEST) is MANIFEST
    assert not home.exists()
    swarm = ensure_swarm(Home(home))
    Home(home).ca_key.unlink()
    assert sign_if_owner(MANIFEST) is MANIFEST
    with pytest.raises(SettingsError):
        sign(MANIFEST, open_swarm(Home(home)))
    assert not signature_is_valid(MANIFEST, swarm.ca_pem)


@pytest.mark.parametrize("change", [{"name": "other"}, {"signature": "AAAA"}, {"signature": "???"}, {"signature": "ü"}])
def test_a_changed_manifest_or_signature_is_not_valid(home: Path, change: dict[str, str]) -> None:
    swarm = ensure_swarm(Home(home))
    assert not signature_is_valid(sign_if_owner(MANIFEST).model_copy(update=change), swarm.ca_pem)


def test_the_signature_of_another_swarm_is_not_valid(home: Path, tmp_path: Path) -> None:
    ensure_swarm(Home(home))
    other = ensure_swarm(Home(tmp_path / "other"))
    assert not signature_is_valid(sign_if_owner(MANIFEST), other.ca_pem)
