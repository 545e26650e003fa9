"""Where shards can run, which runs where, and how a process is kept to one device."""

from __future__ import annotations

import pytest

from shardnet import assign_shards, detect_devices
from shardnet.errors import UsageError
from shardnet.library.devices import bind, spelled


def test_the_processor_is_found_last() -> None:
    assert detect_devices()[-1] == "cpu"


def test_devices_take_turns() -> None:
    assert assign_shards(4, ["cuda:0", "cuda:1"]) == {0: "cuda:0", 1: "cuda:1", 2: "cuda:0", 3: "cuda:1"}


def test_neighbours_can_stay_together() -> None:
    together = assign_shards(5, ["CUDA0", "cuda:1", "cpu"], neighbours_together=True)
    assert together == {0: "cuda:0", 1: "cuda:0", 2: "cuda:1", 3: "cuda:1", 4: "cpu"}
    assert assign_shards(1, ["cuda:0", "cpu"], neighbours_together=True) == {0: "cuda:0"}


@pytest.mark.parametrize(("n_shards", "devices"), [(0, ["cpu"]), (2, [])])
def test_nothing_to_assign_is_said(n_shards: int, devices: list[str]) -> None:
    with pytest.raises(UsageError, match="at least one"):
        assign_shards(n_shards, devices)


def test_a_process_is_shown_one_gpu_also_where_its_user_hides_some() -> None:
    assert bind("cuda:1", {}).environment == {"CUDA_VISIBLE_DEVICES": "1"}
    assert bind("CUDA1", {"CUDA_VISIBLE_DEVICES": "5,7"}).environment == {"CUDA_VISIBLE_DEVICES": "7"}
    with pytest.raises(UsageError, match="shows 1 of them"):
        bind("cuda:1", {"CUDA_VISIBLE_DEVICES": "5"})


def test_a_process_on_the_processor_is_shown_no_gpu() -> None:
    binding = bind("cpu", {"CUDA_VISIBLE_DEVICES": "5"})
    assert (binding.n_gpu_layers, binding.environment["CUDA_VISIBLE_DEVICES"]) == (0, "-1")


@pytest.mark.parametrize("name", ["", "cuda:x", "0", "tpu:0", "cuda"])
def test_what_is_no_device_is_named(name: str) -> None:
    with pytest.raises(UsageError, match="device"):
        bind(spelled(name), {})
