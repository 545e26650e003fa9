"""A model at an address reads like the same model on the disk: header, tensors in order, from the middle on, and samples."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shardnet.errors import GgufError, SettingsError, UsageError
from shardnet.inference.gguf.header import GgufHeader, StreamedData
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.opening import open_model
from shardnet.inference.remote import tensors as tensors_module
from shardnet.inference.remote.opening import close_url, open_url, traffic_of
from tests.support.gguf_parts import parts_of
from tests.support.random_models import tiny_llama
from tests.support.range_server import Served, range_server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("m") / "tiny.gguf", n_layers=6)


@pytest.fixture
def served(model: Path) -> Iterator[tuple[str, Served]]:
    with range_server({"/a/tiny.gguf": model}) as server:
        yield server


def streamed(header: GgufHeader) -> StreamedData:
    data = header.tensors[0].data
    assert isinstance(data, StreamedData)
    return data


def bytes_here(header: GgufHeader) -> list[bytes]:
    return [one.path.read_bytes()[one.offset : one.offset + one.nbytes] for one in header.tensors]


def bytes_there(header: GgufHeader) -> list[bytes]:
    data = streamed(header)
    data.expect([(tensor, 0) for tensor in header.tensors])
    return [b"".join(data.pieces(tensor)) for tensor in header.tensors]


def test_a_header_there_is_the_header_here(served: tuple[str, Served], model: Path) -> None:
    here, there = read_model(model), open_url(f"{served[0]}/a/tiny.gguf?signature=secret")
    assert there.path.name == "tiny.gguf"
    assert {key: field.raw() for key, field in there.fields.items()} == {k: f.raw() for k, f in here.fields.items()}
    places = [replace(tensor, data=None, path=model) for tensor in there.tensors]
    assert places == list(here.tensors)
    (origin,) = there.origins
    assert origin.place == f"{served[0]}/a/tiny.gguf", "what stands behind the question mark may be a secret"
    assert origin.version.startswith(f"{model.stat().st_size} bytes, ETag ")
    close_url(there)


def test_tensors_come_in_order_in_large_ranges_and_from_the_middle_on(
    served: tuple[str, Served], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors_module, "RANGE_BYTES", 10_000)
    there = open_url(f"{served[0]}/a/tiny.gguf")
    before = len(served[1].asked)
    assert bytes_there(there) == bytes_here(read_model(model))
    data_bytes = there.file_bytes - there.tensors[0].offset
    assert len(served[1].asked) - before == -(-data_bytes // 10_000), "neighbours are fetched together"
    third = there.tensors[2]
    assert b"".join(streamed(there).pieces_from(third, 5)) == bytes_here(read_model(model))[2][5:]
    close_url(there)


def test_a_tensor_that_was_not_expected_comes_beside_those_that_were(
    served: tuple[str, Served], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors_module, "RANGE_BYTES", 10_000)
    there, here = open_url(f"{served[0]}/a/tiny.gguf"), bytes_here(read_model(model))
    data, kept = streamed(there), there.tensors[::2]
    data.expect([(tensor, 0) for tensor in kept])
    assert [b"".join(data.pieces(tensor)) for tensor in there.tensors] == here
    traffic = traffic_of(there)
    assert traffic is not None
    assert traffic.asked_bytes < 1.2 * traffic.file_bytes, "nothing was asked for twice"
    close_url(there)


def test_what_was_asked_for_is_counted(served: tuple[str, Served], model: Path) -> None:
    there = open_url(f"{served[0]}/a/tiny.gguf")
    bytes_there(there)
    traffic = traffic_of(there)
    assert traffic is not None
    assert traffic.file_bytes == model.stat().st_size
    assert traffic.asked_bytes == served[1].sent_bytes
    close_url(there)
    assert traffic_of(read_model(model)) is None


def test_samples_are_bytes_of_the_tensors_and_neighbours_come_together(served: tuple[str, Served], model: Path) -> None:
    there, here = open_url(f"{served[0]}/a/tiny.gguf"), bytes_here(read_model(model))
    wanted = [(tensor, 0, min(8, tensor.nbytes)) for tensor in there.tensors]
    before = len(served[1].asked)
    assert streamed(there).samples(wanted) == [data[:8] for data in here]
    assert len(served[1].asked) - before < len(wanted)
    close_url(there)


def test_all_parts_of_a_model_are_found_from_any_of_them(model: Path, tmp_path: Path) -> None:
    parts = parts_of(model, tmp_path, 3)
    with range_server({f"/x/{part.name}": part for part in parts}) as (url, served):
        there, here = open_url(f"{url}/x/{parts[1].name}?t=1"), read_model(parts[0])
        assert there.path.name == parts[1].name
        assert [origin.place for origin in there.origins] == [f"{url}/x/{part.name}" for part in parts]
        assert bytes_there(there) == bytes_here(here)
        assert all(seen[":path"].endswith("?t=1") for seen in served.headers)
        close_url(there)
        del served.files[f"/x/{parts[2].name}"]
        with pytest.raises(UsageError, match=r"there is no file at .*00003-of-00003.gguf"):
            open_url(f"{url}/x/{parts[0].name}")


def test_what_cannot_be_quantised_keeps_no_transfer_open(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "tiny.gguf", n_layers=1, quantisation="Q8_0")
    with range_server({"/a/tiny.gguf": model}) as (url, _), pytest.raises(UsageError, match=r"is quantised already"):
        open_model(f"{url}/a/tiny.gguf", quantize="q4_0")
    assert not [thread for thread in threading.enumerate() if thread.name == "transfers"]


def test_what_is_no_gguf_is_refused_by_its_name() -> None:
    with range_server({"/n.gguf": b"PK" * 5000}) as (url, _), pytest.raises(GgufError, match=r"n.gguf is not a GGUF"):
        open_url(f"{url}/n.gguf")


def test_a_truncated_file_is_refused_before_its_tensors_are_read(model: Path) -> None:
    data = model.read_bytes()[:-5000]
    with range_server({"/t.gguf": data}) as (url, served):
        with pytest.raises(GgufError, match=r"t.gguf is truncated: .* bytes are missing"):
            open_url(f"{url}/t.gguf")
        assert served.sent_bytes < len(data)


def test_a_proxy_of_the_environment_is_used(
    served: tuple[str, Served], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    url, proxy = served
    proxy.files["http://models.example/tiny.gguf"] = model
    monkeypatch.setenv("HTTP_PROXY", url)
    there = open_url("http://models.example/tiny.gguf")
    assert len(there.tensors) == len(read_model(model).tensors)
    assert proxy.headers[-1]["host"] == "models.example"
    close_url(there)


def test_a_proxy_that_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "what://ever")
    with pytest.raises(SettingsError, match=r"the proxy that the environment names cannot be used"):
        open_url("http://models.example/tiny.gguf")
