"""llama.cpp's build against the machine, described and real."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardnet.doctor import engine
from shardnet.doctor.engine import EngineFacts, engine_findings, look_at_engine, processor_flags
from shardnet.errors import DeadlineExceeded

FULL = frozenset({"AVX", "AVX2", "FMA", "F16C", "BMI2"})
FLAGS = frozenset({"avx", "avx2", "fma", "f16c", "bmi2", "sse4_2"})


def test_this_installations_llama_cpp_can_be_asked_and_says_what_it_was_built_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "TIMEOUT_S", 60.0)
    facts = look_at_engine()
    assert not facts.ended
    assert facts.version
    assert facts.built


def test_a_build_without_what_the_processor_has_is_a_warning_with_the_command() -> None:
    (found,) = engine_findings(EngineFacts(built=FULL - {"AVX2", "FMA"}, processor=FLAGS))
    assert found.level == "warning"
    assert "without AVX2, FMA" in found.what
    assert 'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --force-reinstall' in found.remedy
    assert "llama-cpp-python==" in found.remedy
    assert engine_findings(EngineFacts(built=FULL, processor=FLAGS | {"avx512f"}))[0].level == "note"
    assert engine_findings(EngineFacts(built=FULL, processor=FLAGS))[0].level == "ok"
    assert engine_findings(EngineFacts(built=frozenset({"NEON"}), processor=frozenset()))[0].level == "ok"


@pytest.mark.parametrize(
    ("facts", "level", "word"),
    [
        (EngineFacts(built=FULL, processor=FLAGS, nvidia=("/dev/nvidia0",)), "warning", "-DGGML_CUDA=on"),
        (EngineFacts(built=FULL, processor=FLAGS, nvidia=("/dev/nvidia0",), offloads=True), "warning", "nvidia-smi"),
        (EngineFacts(built=FULL, processor=FLAGS, render=("/dev/dri/renderD128",)), "note", "-DGGML_VULKAN=on"),
        (EngineFacts(built=FULL, processor=FLAGS, nvidia=("/dev/nvidia0",), gpus=("CUDA0",)), "ok", ""),
    ],
)
def test_a_gpu_that_is_there_and_not_used_is_told_with_how_to_build_for_it(
    facts: EngineFacts, level: str, word: str
) -> None:
    (found,) = engine_findings(facts)
    assert found.level == level
    assert word in found.remedy


def test_devices_of_gpus_are_seen_where_the_kernel_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = '{"built": [], "offloads": false, "gpus": [], "native": true}'
    monkeypatch.setattr(engine, "python_module", lambda _name: ("echo", told))
    for path in ("dev/nvidia0", "dev/nvidiactl", "dev/dri/renderD128", "dev/dri/card0", "proc/cpuinfo"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("flags\t\t: fpu avx avx2\n")
    facts = look_at_engine(tmp_path)
    assert facts.nvidia == (str(tmp_path / "dev/nvidia0"),)
    assert facts.render == (str(tmp_path / "dev/dri/renderD128"),)
    assert facts.processor == {"fpu", "avx", "avx2"}
    assert processor_flags("Features : neon\n") == frozenset()


def test_a_llama_cpp_that_ends_the_process_is_a_fault_and_ends_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "python_module", lambda _name: ("sh", "-c", "kill -ILL $$"))
    (found,) = engine_findings(look_at_engine())
    assert found.level == "fault"
    assert "SIGILL: it was built for a processor with more instruction sets" in found.what
    monkeypatch.setattr(engine, "python_module", lambda _name: ("sh", "-c", "echo libcuda.so.1 is missing >&2; exit 1"))
    (found,) = engine_findings(look_at_engine())
    assert "exit code 1 (libcuda.so.1 is missing)" in found.what


def test_a_llama_cpp_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(engine, "python_module", lambda _name: ("sleep", "5"))
    with pytest.raises(DeadlineExceeded, match="took longer than"):
        look_at_engine()


def test_a_missing_compiled_part_is_a_warning() -> None:
    (found,) = engine_findings(EngineFacts(built=FULL, processor=FLAGS, native=False))
    assert found.level == "warning"
    assert "_capture" in found.what
