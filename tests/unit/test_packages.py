"""Versions of packages against what shardnet takes."""

from __future__ import annotations

import pytest

from shardnet.doctor.software import look_at_packages, package_findings
from shardnet.packages import LLAMA, installed, is_within, ranges, required


@pytest.mark.parametrize(
    ("found", "wanted", "within"),
    [
        ("0.3.36", "==0.3.36", True),
        ("0.3.36+cu124", "==0.3.36", True),
        ("0.3.37", "==0.3.36", False),
        ("43.0", "<51,>=43.0.0", True),
        ("51.0.0", "<51,>=43.0.0", False),
        ("9.9", "", True),
    ],
)
def test_a_version_is_held_against_its_range(found: str, wanted: str, within: bool) -> None:
    assert is_within(found, wanted) == within


def test_what_is_installed_here_is_what_shardnet_takes() -> None:
    assert [one.level for one in look_at_packages()] == ["ok"]
    assert required(LLAMA) == f"=={installed(LLAMA)}"
    assert "pytest" not in ranges()
    assert installed("no-such-package-anywhere") is None


def test_another_llama_cpp_and_a_package_that_is_missing_are_faults_and_others_warnings() -> None:
    wanted = {LLAMA: "==0.3.36", "numpy": "<3,>=2.0.0", "rich": ">=13.8.0", "psutil": ">=5"}
    found = package_findings({LLAMA: "0.3.99", "numpy": "3.1", "rich": None, "psutil": "7.0"}, wanted)
    assert {one.what.split()[0]: one.level for one in found} == {
        LLAMA: "fault",
        "numpy": "warning",
        "rich": "fault",
    }
    assert found[0].remedy == f"Run `pip install '{LLAMA}==0.3.36'`"
