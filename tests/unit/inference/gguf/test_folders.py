"""A folder stands for the only model in it; where several are in it, each is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from shardnet.errors import GgufError, UsageError
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.gguf.writer import string_value, write_gguf
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.inspection import inspect_path
from tests.support.gguf_parts import parts_of
from tests.support.random_models import tiny_llama


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny.gguf", n_layers=4)


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """Holds the model in three parts."""
    (tmp_path / "parts").mkdir()
    parts_of(model, tmp_path / "parts", 3)
    return tmp_path / "parts"


def test_a_folder_of_parts_is_inspected_and_planned_like_any_of_its_parts(folder: Path) -> None:
    part = folder / "big-00002-of-00003.gguf"
    assert read_model(folder) == read_model(part)
    assert inspect_path(folder) == inspect_path(part)
    assert plan_split(folder, CutRequest(n_shards=2)).shards == plan_split(part, CutRequest(n_shards=2)).shards


def test_what_lies_beside_the_model_does_not_count(folder: Path) -> None:
    for name, fields in (
        ("mmproj.gguf", {"general.architecture": "clip"}),
        ("lora.gguf", {"general.architecture": "llama", "general.type": "adapter"}),
        ("imatrix.gguf", {"general.type": "imatrix"}),
    ):
        values = {"x": string_value("x")} | {key: string_value(value) for key, value in fields.items()}
        write_gguf(folder / name, dict(values), [], mark="x", on_bytes=lambda _count: None)
    (folder / "README.md").write_text("three parts")
    (folder / ".half.gguf").write_text("a download")
    assert len(read_model(folder).paths) == 3


def test_several_models_are_each_named_by_a_file(folder: Path, model: Path) -> None:
    shutil.copy(model, folder / "other.gguf")
    for look in (read_model, inspect_path, lambda path: plan_split(path, CutRequest())):
        with pytest.raises(UsageError, match=r"name one of big-00001-of-00003\.gguf, other\.gguf"):
            look(folder)


def test_a_missing_part_is_named_whichever_it_is(folder: Path) -> None:
    (folder / "big-00001-of-00003.gguf").unlink()
    with pytest.raises(GgufError, match="big-00001-of-00003"):
        read_model(folder)


def test_a_folder_without_a_model_says_what_to_name(tmp_path: Path, model: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no GGUF: name a model's file"):
        plan_split(tmp_path / "empty", CutRequest())
    with pytest.raises(UsageError, match="name a model's file"):
        inspect_path(tmp_path / "empty")
    made, _ = split_model(plan_split(model, CutRequest(n_shards=2)), tmp_path / "cache")
    for already in (made, tmp_path / "cache"):
        with pytest.raises(UsageError, match="holds shards already"):
            plan_split(already, CutRequest())


def test_linked_model_files_are_read_since_nothing_is_written_to_them(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for path in folder.iterdir():
        (tmp_path / "links" / path.name).symlink_to(os.path.relpath(path, tmp_path / "links"))
    (tmp_path / "link").symlink_to(tmp_path / "links")
    assert read_model(tmp_path / "link").tensors[0].name == read_model(folder).tensors[0].name
