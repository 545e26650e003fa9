"""A machine without a usable folder for temporary files: what can do without does, what cannot says so."""

from __future__ import annotations

import errno
import sys
import tempfile
from pathlib import Path

import pytest

from shardnet.errors import NoRoomError, SettingsError
from shardnet.inference.llama.census import EngineCensus
from shardnet.scratch import scratch_folder, words_file


@pytest.fixture
def _no_temp_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where every folder that Python tries is full or may not be written to."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])


@pytest.mark.usefixtures("_no_temp_folder")
def test_what_needs_a_scratch_folder_says_which_variable_names_one() -> None:
    with pytest.raises(SettingsError, match="set TMPDIR"), scratch_folder("test"):
        pass


def test_a_full_disk_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_names: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(NoRoomError, match=r"No space left.*TMPDIR"), scratch_folder("test"):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="files in memory are Linux's")
@pytest.mark.usefixtures("_no_temp_folder")
def test_what_a_child_says_needs_no_folder() -> None:
    with words_file() as words:
        words.write(b"last words")
        words.seek(0)
        assert words.read() == b"last words"


@pytest.mark.usefixtures("_no_temp_folder")
def test_an_engine_without_a_folder_for_its_lock_counts_itself_alone() -> None:
    census = EngineCensus()
    assert census.count() == 1
    census.close()


def test_a_scratch_folder_is_gone_at_the_end() -> None:
    with scratch_folder("test") as folder:
        (folder / "file").touch()
    assert not folder.exists()
