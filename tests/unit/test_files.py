"""Small files are there whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from shardnet.errors import NoRoomError, SettingsError, UsageError
from shardnet.files import unwritable, write_whole


def test_a_written_file_has_its_content_and_mode_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(file, b"old", mode=0o600)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    write_whole(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file = tmp_path / "file"
    write_whole(file, b"old")

    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_is_told_apart_from_a_folder_that_cannot_be_written(number: int) -> None:
    full = unwritable(Path("a"), OSError(number, os.strerror(number)))
    assert isinstance(full, NoRoomError)
    assert "cannot write a: " in str(full)
    barred = OSError(errno.EACCES, "Permission denied")
    assert isinstance(unwritable(Path("a"), barred), UsageError)
    assert str(unwritable(Path("a"), barred, SettingsError)) == "cannot write a: Permission denied"
