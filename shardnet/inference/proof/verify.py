"""`verify`: prove that a split model gives the unsplit model's numbers, and write that down in its manifest.

The arithmetic runs in a child process (`python -m shardnet.inference.proof.verify`; one JSON line on stdin, which then stays open, and JSON lines on
stdout): however that ends, it must become a sentence that names the family and the shard.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from shardnet.children import python_module
from shardnet.errors import (
    EngineError,
    FamilyRefused,
    ManifestError,
    NoRoomError,
    ShardCorrupt,
    ShardnetError,
    UsageError,
    error_from_wire,
)
from shardnet.inference.engine.spawning import how_it_ended, was_out_of_memory
from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.gguf.layout import quantisation_of, read_model, vocabulary_size
from shardnet.inference.gguf.writer import file_sha256
from shardnet.inference.proof.estimate import plan_for
from shardnet.inference.proof.planning import ProofPlan
from shardnet.inference.proof.steps import Method
from shardnet.inference.splitting import families
from shardnet.inference.splitting.manifest_file import load_manifest, no_link, save_manifest
from shardnet.limits.killing import memory_kills
from shardnet.manifest import Manifest, ModelContent, NoProof, ParityCertificate
from shardnet.scratch import scratch_folder, words_file

OnProgress = Callable[[float], None]
"""Called with the share that is done, 0..1."""
OnPlan = Callable[[ProofPlan], None]
OnBytes = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

LAST_WORDS_BYTES = 8192
PARENT_GONE_S = 1.0
LEAVE_S = 5.0
COMMAND: Sequence[str] = python_module("shardnet.inference.proof.verify")
CHILD_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1"}  # no debugger for a backtrace: that would take seconds


def verify_split(
    folder: Path,
    source: Path,
    *,
    on_progress: OnProgress | None = None,
    on_plan: OnPlan = lambda _plan: None,
    method: Method | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
    decode_tokens: int | None = None,
    threads: int = 0,
    save: bool = True,
) -> ParityCertificate:
    """Run the shards of a folder as a chain, and the unsplit model beside it, on the same batches.

    Args:
        folder: holds the manifest and the shards.
        source: the unsplit model (any part of one that llama.cpp split by size).
        on_plan: told what the proof will read and about how long it takes, before it begins.
        method: `full` or `quick`; chosen if None: quick where full would read the model's file too often.
        prompts: token ids; built-in texts in the model's vocabulary if None.
        decode_tokens: greedy tokens after each prompt; 32, or as many as a quick proof has room for, if None.
        save: write the certificate into the manifest. A signed manifest is left alone: the signature covers the certificate.

    Returns: what was found; `is_exact` tells whether not a single bit differed, `fault_of` which shard differs first.

    Raises: UsageError, EngineError, ManifestError (the shards are of another model), FamilyRefused (llama.cpp does not run the model or a shard).
    """
    manifest = load_manifest(folder)
    folder = folder if folder.is_dir() else folder.parent
    header = read_model(source)
    check_source(manifest, header)
    shards = [folder / shard.file for shard in manifest.content.shards]
    for path in shards:
        if not path.is_file():
            raise UsageError(f"{path} is missing, and a chain needs all its shards")
    lengths = None if prompts is None else [len(prompt) for prompt in prompts]
    plan = plan_for(header, shards, lengths, method=method, decode_tokens=decode_tokens, threads=threads)
    on_plan(plan)
    request = {
        "source": str(header.path.absolute()),
        "stages": [
            [str(path.absolute()), shard.layers.end]
            for path, shard in zip(shards, manifest.content.shards, strict=True)
        ],
        "prompts": None if prompts is None else [list(prompt) for prompt in prompts],
        "method": plan.method,
        "decode_tokens": plan.decode_tokens,
        "weights_budget": plan.weights_budget,
        "rows_per_step": plan.rows_per_step,
        "longest_prompt": plan.longest_prompt,
        "threads": threads,
    }
    certificate = _run_child(request, manifest.content, on_progress or (lambda _share: None))
    certificate = certificate.model_copy(update={"method": plan.method, "why": plan.why})
    if save and manifest.signature is None:
        save_manifest(folder, manifest.model_copy(update={"certificate": certificate}))
    return certificate


def fault_of(content: ModelContent, certificate: ParityCertificate | NoProof | None) -> str:
    """Returns: one sentence that names the shard at fault, '' if nothing differs, or nothing was run that could."""
    if not isinstance(certificate, ParityCertificate) or certificate.is_exact:
        return ""
    for boundary in certificate.boundaries:
        if boundary.max_abs_diff > 0:
            layers = content.shards[boundary.shard_id].layers
            fed = "its input was exact" if boundary.shard_id else "it read the same tokens"
            return (
                f"shard {boundary.shard_id} (layers {layers}) is at fault: {fed}, and its output differs from the unsplit model's "
                f"by up to {boundary.max_abs_diff:g}"
            )
    last = content.shards[-1]
    return (
        f"shard {last.shard_id} (layers {last.layers}) is at fault: every boundary before it is exact, and its logits differ "
        f"by up to {certificate.max_abs_logit_diff:g}"
    )


def damaged_files(folder: Path, manifest: Manifest, on_bytes: OnBytes = lambda _done, _all: None) -> list[str]:
    """Hash every file of a split model anew; not the shards that were cut on other machines.

    Args:
        on_bytes: called with (bytes done, bytes in all).

    Returns: one sentence for each file that is missing or not what the manifest promises; [] if all is well.
    """
    content = manifest.content
    wanted = [(content.shards[shard_id].file, manifest.sha256_of(shard_id)) for shard_id in manifest.cut_here]
    wanted.append((content.tokenizer.file, content.tokenizer.sha256))
    total = sum(content.shards[shard_id].bytes for shard_id in manifest.cut_here) + content.tokenizer.bytes
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        on_bytes(done, total)

    sentences = []
    for name, digest in wanted:
        path = folder / name
        try:
            no_link(path)
        except ShardCorrupt as error:
            sentences.append(str(error))
            continue
        if not path.is_file():
            sentences.append(f"{path} is missing")
        elif file_sha256(path, advance) != digest:
            sentences.append(
                f"{path} is damaged: its SHA-256 is not the manifest's; delete it, then split the model again or fetch it again"
            )
    return sentences


def check_source(manifest: Manifest, header: GgufHeader) -> None:
    """Raises: ManifestError if the shards cannot have been cut from this model."""
    content = manifest.content
    ours = (content.architecture, content.n_layers, content.n_embd, content.n_vocab, content.quantisation)
    theirs = (
        header.architecture,
        families.layer_count(header),
        header.arch("embedding_length"),
        vocabulary_size(header),
        quantisation_of(header),
    )
    if ours != theirs:
        raise ManifestError(
            f"{header.path} is not the model that {manifest.name} was cut from: it is {_in_words(theirs)}, the manifest says {_in_words(ours)}"
            + ("; if it was quantised on the way, say how with --quantize" if ours[:-1] == theirs[:-1] else "")
        )


def _in_words(facts: tuple[Any, ...]) -> str:
    architecture, n_layers, n_embd, n_vocab, quantisation = facts
    return f"{architecture} {quantisation} with {n_layers} layers of width {n_embd} and {n_vocab} tokens"


# -- the child process ---------------------------------------------------------------------------------------------------------------------


def _run_child(request: dict[str, Any], content: ModelContent, on_progress: OnProgress) -> ParityCertificate:
    phase, result, failure = "start", None, None
    kills_before = memory_kills()
    with (
        scratch_folder("verify") as scratch,
        words_file() as last_words,
    ):
        child = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=last_words,
            env=CHILD_ENVIRONMENT | os.environ,
            start_new_session=True,  # Ctrl-C is for us to answer
        )
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # stays open: its end tells the child that we are gone
                child.stdin.write(json.dumps(request | {"scratch": str(scratch)}).encode() + b"\n")
                child.stdin.flush()
            for line in child.stdout:
                message = json.loads(line)
                if "progress" in message:
                    on_progress(float(message["progress"]))
                phase = message.get("phase", phase)
                result = message.get("result", result)
                failure = message.get("error", failure)
            code = child.wait()
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        words = read_last_words(last_words)
    if result is not None:
        return ParityCertificate.model_validate_json(json.dumps(result))
    if failure is not None:
        raise _refusal(error_from_wire(failure["code"], failure["message"], failure["facts"]), phase, content)
    if was_out_of_memory(code, kills_before):
        raise NoRoomError(
            f"the process that compares the shards with the unsplit model was {how_it_ended(code, out_of_memory=True)}: free some, or prove them "
            "by the quick method, which needs least"
        )
    reason = why_it_ended(words, code)
    if code < 0 and phase != "start":
        raise _refusal(EngineError(f"its process ended ({reason})"), phase, content)
    raise EngineError(f"the verifying process ended early: {reason}")


def read_last_words(file: IO[bytes]) -> str:
    """Returns: the end of what a process wrote to its standard error."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - LAST_WORDS_BYTES, 0))
    return file.read().decode(errors="replace")


def why_it_ended(words: str, code: int) -> str:
    """Returns: ggml's own reason, else the last line, else the signal's name."""
    asserted = re.findall(r"(GGML_ASSERT\(.*\) failed|fatal error.*)", words)
    lines = [line for line in words.splitlines() if line.strip()]
    ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return asserted[-1] if asserted else lines[-1].strip() if lines and code > 0 else ended


def _refusal(error: ShardnetError, phase: str, content: ModelContent) -> ShardnetError:
    """Returns: the error as the user should see it: what llama.cpp does not run is refused by name."""
    if not isinstance(error, EngineError):
        return error
    if not phase.startswith("shard "):
        return FamilyRefused(f"{content.architecture}: llama.cpp does not run the unsplit model: {error}")
    shard = content.shards[int(phase.removeprefix("shard "))]
    return FamilyRefused(
        f"{content.architecture} cannot be cut like this: shard {shard.shard_id} (layers {shard.layers}) does not run: {error}",
        shard_id=shard.shard_id,
    )


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _leave_with_parent(scratch: Path, is_gone: threading.Event) -> None:
    """End this process when its parent is gone, and the scratch folder with it, however busy llama.cpp is."""
    os.read(
        0, 1
    )  # nothing is ever written after the request; not through sys.stdin, whose lock would hold up a normal end
    is_gone.set()
    deadline = time.monotonic() + LEAVE_S
    while scratch.exists() and time.monotonic() < deadline:  # again while the main thread puts files into it
        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def _child_main() -> int:
    """Serve one request. The scratch folder is the parent's to remove, or ours once the parent is gone."""
    request = json.loads(sys.stdin.buffer.readline())
    scratch, is_gone = Path(request["scratch"]), threading.Event()
    watch = threading.Thread(target=_leave_with_parent, args=(scratch, is_gone), name="parent watch", daemon=True)
    watch.start()
    try:
        _prove(request)
    except OSError:  # nobody reads what we say, or the scratch folder is going
        if not is_gone.wait(PARENT_GONE_S):
            raise
        watch.join()  # it ends this process; ended now, that could be in the middle of removing the scratch folder
    return 0


def _prove(request: dict[str, Any]) -> None:
    from shardnet.inference.llama.census import learnt_share
    from shardnet.inference.proof.parity import HowToRun, StageFile, run_parity

    how = HowToRun(
        method=request["method"],
        decode_tokens=request["decode_tokens"],
        weights_budget=request["weights_budget"],
        rows_per_step=request["rows_per_step"],
        longest_prompt=request["longest_prompt"],
        threads=request["threads"] or learnt_share(),
    )
    try:
        certificate = run_parity(
            Path(request["source"]),
            [StageFile(Path(path), end) for path, end in request["stages"]],
            Path(request["scratch"]),
            how,
            prompts=request["prompts"],
            on_progress=lambda share: _say(progress=round(share, 4)),
            on_phase=lambda phase: _say(phase=phase),
        )
    except ShardnetError as error:
        _say(error={"code": error.code, "message": error.message, "facts": error.facts})
    else:
        _say(result=certificate.model_dump(mode="json"))


if __name__ == "__main__":
    sys.exit(_child_main())
