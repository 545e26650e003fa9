"""A model that is nowhere yet is written once for the proof, where there is room, and is gone afterwards."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from shardnet.errors import NoRoomError, ShardnetError, UsageError
from shardnet.inference.gguf.header import GgufHeader, padded
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.opening import open_model
from shardnet.inference.splitting import whole
from shardnet.inference.splitting.whole import check_whole_fits, whole_bytes, whole_file
from tests.support.random_models import tiny_llama
from tests.support.whole_checkpoints import write_model


@pytest.fixture
def header(tmp_path: Path) -> GgufHeader:
    return open_model(write_model(tmp_path / "m"))


def test_what_is_written_says_what_the_model_says_and_is_gone_afterwards(header: GgufHeader, tmp_path: Path) -> None:
    base, told = tmp_path / "base", [0]
    with whole_file(header, base, lambda done, _all: told.append(done)) as path:
        written = read_model(path)
        assert path.stat().st_size == whole_bytes(header)
        assert {key: written.get(key) for key in written.fields} == {key: header.get(key) for key in header.fields}
        assert [(one.name, one.shape, one.ggml_type) for one in written.tensors] == [
            (one.name, one.shape, one.ggml_type) for one in header.tensors
        ]
    assert told == sorted(told)
    assert told[-1] == sum(padded(tensor.nbytes) for tensor in header.tensors)
    assert not any(base.iterdir())


def test_a_gguf_is_its_own_whole_file_and_needs_no_room(tmp_path: Path) -> None:
    header = read_model(tiny_llama(tmp_path / "tiny.gguf"))
    assert whole_bytes(header) == 0
    check_whole_fits(header, tmp_path / "nowhere", 1 << 60)
    with whole_file(header, tmp_path / "nowhere") as path:
        assert path == header.path
    assert not (tmp_path / "nowhere").exists()


def test_too_little_room_is_said_before_the_first_byte(
    header: GgufHeader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(NoRoomError, match=r"beside shards of 5\.0 kB.*--no-verify"):
        check_whole_fits(header, tmp_path / "base", 5000)
    with pytest.raises(NoRoomError), whole_file(header, tmp_path / "base"):
        pass
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, NoRoomError), (errno.EROFS, UsageError), (errno.EIO, ShardnetError)]
)
def test_a_disk_that_takes_no_more_is_an_error_of_ours_and_leaves_nothing(
    header: GgufHeader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[ShardnetError]
) -> None:
    def fail(*_arguments: object, **_more: object) -> None:
        raise OSError(number, "no more")

    monkeypatch.setattr(whole, "write_gguf", fail)
    with pytest.raises(kind, match="whole model"), whole_file(header, tmp_path / "base"):
        pass
    assert not any((tmp_path / "base").iterdir())
