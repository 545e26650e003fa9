"""The header reader believes nothing: what is not a whole, consistent GGUF is refused in one sentence, quickly, in little memory."""

from __future__ import annotations

import ctypes
import os
import random
import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import llama_cpp
import pytest

from shardnet.errors import GgufError, ShardnetError, UsageError
from shardnet.inference.gguf.cursor import MAX_STRING_BYTES
from shardnet.inference.gguf.element_types import FILE_TYPES, GGML_TYPES
from shardnet.inference.gguf.header import GgufHeader, ValueType, read_gguf_header, read_leading_fields
from tests.support.random_models import tiny_llama

B10_HEADERS = 2000
B10_CPU_S = 0.05
B10_BYTES = 64 << 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf", n_layers=3)


def test_every_type_has_the_size_that_the_installed_llama_cpp_gives_it() -> None:
    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))))
    library.ggml_type_name.restype, library.ggml_type_size.restype, library.ggml_blck_size.restype = (
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_int64,
    )
    known = {
        number: (library.ggml_type_name(number).decode().upper(), block, library.ggml_type_size(number))
        for number in range(43)
        if (block := library.ggml_blck_size(number))
    }
    assert {number: (kind.name, kind.block, kind.block_bytes) for number, kind in GGML_TYPES.items()} == known


def test_every_file_type_of_the_gguf_package_has_its_name() -> None:
    for kind in gguf.constants.LlamaFileType:
        if kind.name != "GUESSED":
            name = kind.name.removeprefix("ALL_").removeprefix("MOSTLY_").removesuffix("_MOE")
            assert FILE_TYPES[int(kind)] == name


def test_a_header_reads_as_the_gguf_package_reads_it(tiny: Path) -> None:
    ours, theirs = read_gguf_header(tiny), gguf.GGUFReader(tiny)
    assert {key: ours.get(key) for key in ours.fields} == {
        key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")
    }
    assert [(t.name, t.shape, t.ggml_type, t.offset, t.nbytes) for t in ours.tensors] == [
        (t.name, tuple(int(side) for side in t.shape), int(t.tensor_type), int(t.data_offset), int(t.n_bytes))
        for t in theirs.tensors
    ]


def test_facts_of_the_architecture_are_found_by_their_suffix(tiny: Path) -> None:
    header = read_gguf_header(tiny)
    assert (header.architecture, header.n_layers, header.arch("attention.head_count")) == ("llama", 3, 4)
    assert header.get("no.such.key", 7) == 7


def test_the_first_fields_are_read_without_the_rest(tiny: Path) -> None:
    assert list(read_leading_fields(tiny, 1)) == ["general.architecture"]


def with_vocabulary(path: Path, n_tokens: int) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", [f"token{index}" for index in range(n_tokens)])
    writer.add_array("tokenizer.ggml.merges", [f"a b{index}" for index in range(n_tokens)])
    writer.add_array("tokenizer.ggml.token_type", [1] * n_tokens)
    writer.add_uint32("llama.block_count", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_vocabulary_of_128k_tokens_is_walked_over_and_not_kept(tmp_path: Path) -> None:
    path = with_vocabulary(tmp_path / "large.gguf", 128_000)
    read_gguf_header(path)
    tracemalloc.start()
    began = time.thread_time()
    header = read_gguf_header(path)
    taken = time.thread_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert taken < 1  # about 0.03 s without tracemalloc
    assert header.fields["tokenizer.ggml.tokens"].inline is None
    assert header.get("tokenizer.ggml.merges")[-1] == "a b127999"
    assert header.get("llama.block_count") == 1


# -- what is refused -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it has only 0 bytes"),
        (b"GGUF", "it has only 4 bytes"),
        (b"PK\x03\x04" + bytes(60), "begins with b'PK"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1; versions 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), "1099511627776 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "metadata fields"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1), "cut off"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60) + bytes(64), "a name of"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99) + bytes(64), "unknown value type 99"),
        (b"GGUF" + struct.pack("<IQQQ1sIQ", 3, 0, 1, 1, b"k", 8, 1 << 62) + bytes(64), "a string of"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 1 << 20) + bytes(64), "does not fit"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 1 << 62) + bytes(64), "an array of"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1) + bytes(64), "array of arrays"),
    ],
)
def test_a_file_that_is_no_gguf_is_named_and_told_why(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=sentence) as caught:
        read_gguf_header(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_missing_file_a_folder_and_a_pipe_are_wrong_usage_and_never_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe", Path("nul\0byte")):
        with pytest.raises(UsageError):
            read_gguf_header(path)


def test_a_truncated_file_says_how_many_bytes_are_missing(tmp_path: Path, tiny: Path) -> None:
    whole = tiny.read_bytes()
    last = read_gguf_header(tiny).tensors[-1]
    path = tmp_path / "short.gguf"
    path.write_bytes(whole[: last.offset + last.nbytes - 1000])
    with pytest.raises(GgufError, match=r"is truncated: 1000 of \d+ bytes are missing"):
        read_gguf_header(path)


def test_a_header_cut_anywhere_is_refused(tmp_path: Path, tiny: Path) -> None:
    whole = tiny.read_bytes()
    path = tmp_path / "cut.gguf"
    for end in random.Random(3).sample(range(read_gguf_header(tiny).tensors[0].offset), 200):
        path.write_bytes(whole[:end])
        with pytest.raises(GgufError):
            read_gguf_header(path)


def patched(tiny: Path, path: Path, before: bytes, after: bytes) -> Path:
    content = tiny.read_bytes()
    assert content.count(before) == 1
    assert len(before) == len(after)
    path.write_bytes(content.replace(before, after))
    return path


def info(name: str, *rest: int) -> bytes:
    """Returns: how a tensor of two dimensions stands in the header: type and offset last."""
    return struct.pack(f"<Q{len(name)}sI2QIQ", len(name), name.encode(), 2, *rest)


def test_tensors_that_overlap_leave_gaps_or_are_misshapen_are_refused(tmp_path: Path, tiny: Path) -> None:
    header = read_gguf_header(tiny)
    tensor = next(t for t in header.tensors if t.name == "blk.0.attn_k.weight")
    start = header.tensors[0].offset
    right = (*tensor.shape, tensor.ggml_type, tensor.offset - start)
    wrong = {
        "where .* is due": (*right[:3], right[3] + 32),
        "are at 0": (*right[:3], 0),
        "unknown type 4": (*right[:2], 4, right[3]),
        "impossible shape": (0, *right[1:]),
        "impossible shape .*4611686018427387904": (1 << 62, 4, *right[2:]),
    }
    for sentence, values in wrong.items():
        path = patched(tiny, tmp_path / "bad.gguf", info(tensor.name, *right), info(tensor.name, *values))
        with pytest.raises(GgufError, match=sentence):
            read_gguf_header(path)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path, tiny: Path) -> None:
    path = patched(tiny, tmp_path / "bad.gguf", b"blk.0.attn_k.weight", b"blk.0.attn_q.weight")
    with pytest.raises(GgufError, match="stands twice"):
        read_gguf_header(path)
    path = patched(tiny, tmp_path / "bad.gguf", b"llama.embedding_length", b"llama.embedding_lengt\0")
    assert "llama.embedding_length" not in read_gguf_header(path).fields
    path = patched(tiny, tmp_path / "bad.gguf", b"llama.rope.freq_base", b"llama.context_length")
    with pytest.raises(GgufError, match=r"'llama.context_length' stands twice"):
        read_gguf_header(path)


def test_a_file_without_an_architecture_or_layers_is_no_language_model(tmp_path: Path, tiny: Path) -> None:
    header = read_gguf_header(patched(tiny, tmp_path / "a.gguf", b"general.architecture", b"general.architectura"))
    with pytest.raises(GgufError, match="no language model"):
        _ = header.architecture
    header = read_gguf_header(patched(tiny, tmp_path / "b.gguf", b"llama.block_count", b"llama.block_caunt"))
    with pytest.raises(GgufError, match=r"no usable llama.block_count"):
        _ = header.n_layers


def test_a_file_that_became_shorter_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = with_vocabulary(tmp_path / "shrinks.gguf", 10_000)
    header = read_gguf_header(path)
    os.truncate(path, 1000)
    with pytest.raises(GgufError, match="became shorter"):
        header.get("tokenizer.ggml.tokens")


def mutated(content: bytes, end: int, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        at = rng.randrange(end)
        kind = rng.randrange(4)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 8] = struct.pack(
                "<Q", rng.choice((0, 1, 255, 1 << 20, 1 << 31, 1 << 32, 1 << 62, (1 << 64) - 1))
            )
        elif kind == 2:
            data[at : at + rng.randrange(64)] = b""
        else:
            data[at:at] = rng.randbytes(rng.randrange(16))
    return bytes(data)


def use(header: GgufHeader) -> None:
    """What the rest of shardnet does with a header."""
    for key in header.fields:
        header.get(key)
    _ = header.architecture, header.n_layers


def test_two_thousand_mutated_headers_crash_nothing_and_are_quick(tmp_path: Path, tiny: Path) -> None:
    """0 crashes, each within 50 ms; memory in the next test."""
    content, end = tiny.read_bytes(), read_gguf_header(tiny).tensors[0].offset
    rng = random.Random(20)
    path = tmp_path / "mutant.gguf"
    refused, slowest = 0, 0.0
    for _ in range(B10_HEADERS):
        path.write_bytes(mutated(content, end, rng))
        began = time.thread_time()
        try:
            use(read_gguf_header(path))
        except GgufError:
            refused += 1
        slowest = max(slowest, time.thread_time() - began)
    assert refused > B10_HEADERS // 2
    assert slowest < B10_CPU_S


def test_mutated_headers_take_little_memory(tmp_path: Path, tiny: Path) -> None:
    content, end = tiny.read_bytes(), read_gguf_header(tiny).tensors[0].offset
    rng = random.Random(21)
    path = tmp_path / "mutant.gguf"
    tracemalloc.start()
    for _ in range(150):
        path.write_bytes(mutated(content, end, rng))
        try:
            use(read_gguf_header(path))
        except ShardnetError:
            continue
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < B10_BYTES


def test_a_huge_file_whose_header_lies_costs_neither_time_nor_memory(tmp_path: Path) -> None:
    """A sparse file of 100 GB: lengths that would fit into it are still bounded."""
    path = tmp_path / "sparse.gguf"
    arrays = [(ValueType.UINT64, 1 << 24), (ValueType.STRING, 1 << 20), (ValueType.FLOAT64, 1 << 23)]
    for element, count in arrays:
        with path.open("wb") as file:
            file.write(b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 1, 2, 1, b"k", 9, element, count))
            file.truncate(100 << 30)
        tracemalloc.start()
        with pytest.raises(GgufError):
            read_gguf_header(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ1sIQ", 3, 0, 1, 1, b"k", 8, MAX_STRING_BYTES + 1))
    with pytest.raises(GgufError, match="a string of"):
        read_gguf_header(path)
