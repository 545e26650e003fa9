"""Models on disk: `split_model`, `load_manifest`, `verify`. What `shardnet split` and `shardnet verify` do, without a terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardnet.errors import ParityError, RefusedError, UsageError
from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.opening import opened
from shardnet.inference.proof.steps import Method
from shardnet.inference.proof.verify import OnPlan, check_source, damaged_files, fault_of, verify_split
from shardnet.inference.splitting import manifest_file
from shardnet.inference.splitting.cutting import OnProgress
from shardnet.inference.splitting.plan import Balance
from shardnet.library.cutting import Quantising, cut_model, cut_request
from shardnet.manifest import Manifest, NoProof, ParityCertificate
from shardnet.preparing import Bar, Prepared, whole_model
from shardnet.settings import default_home
from shardnet.swarm.signing import sign_if_owner

AnyPath = str | os.PathLike[str]
Report = Callable[[str, float], None]
"""Called with what is being done, and the share of it that is done, 0 to 1."""


def split_model(
    source: AnyPath,
    *,
    shards: int | None = None,
    max_shard_bytes: int | str | None = None,
    cuts: Sequence[int] | None = None,
    balance: Balance | None = None,
    only: Sequence[int] | None = None,
    quantize: str | None = None,
    imatrix: AnyPath | None = None,
    allow_requantize: bool = False,
    out: AnyPath = "models_cache",
    name: str | None = None,
    verify: bool | Method = True,
    home: AnyPath | None = None,
    on_progress: Report | None = None,
) -> Prepared:
    """Cut a model into layer shards, as complete GGUF files, and prove that they give the unsplit model's numbers.

    Args:
        source: a GGUF, or the http(s) address of one; of one that llama.cpp split by size any part, or their folder; a Hugging Face
            checkpoint: its folder, index or single `.safetensors`.
        shards: how many; 2 if neither this nor one of the next two is given, which exclude each other.
        max_shard_bytes: as few shards as keep each below this size: 800_000_000, or "800MB".
        cuts: layers at which a new shard begins.
        balance: what so many shards make even: "speed" (as if None), what a step takes, so that no stage waits for a slower one; "memory", what is
            stored: the way where a machine is too small for the larger first shard.
        only: cut these shards alone, and read no more than they take: several machines cut one model, each its own shards.
        quantize: "q4_k_m", "q8_0" and the like: what the weights become on the way; as they are if None.
        imatrix: an importance matrix to quantise with.
        allow_requantize: also where they were quantised before, and lose twice.
        out: the models cache; the model gets a folder of its own below it.
        name: what people call the model; the file's own name if None.
        verify: run the shards against the unsplit model, if both are here: "full", as nodes run requests, or "quick", by a few readings of the file;
            with True it is full, and quick where the model does not fit into memory. What an earlier call proved is not proved again.
        home: whose swarm signs the manifest, if it is its owner's; `$SHARDNET_HOME` or ~/.shardnet if None.

    Returns: the folder, its manifest, and whether an earlier call had left the files whole already.

    Raises: UsageError (no model there, cuts that make no sense), GgufError, CheckpointError, FamilyRefused (a family that cannot be cut
        exactly), NoRoomError, ParityError (the numbers differ; the files stay, with the certificate that says so).
    """
    done = cut_model(
        source if isinstance(source, str) else Path(source),
        cut_request(shards, max_shard_bytes, cuts, balance),
        Path(out),
        default_home() if home is None else Path(home),
        quantising=Quantising(quantize, None if imatrix is None else Path(imatrix), allow_requantize),
        name=name,
        only=None if only is None else [str(shard) for shard in only],
        prove=verify is not False,
        method=None if isinstance(verify, bool) else verify,
        bar=_bar_of(on_progress),
    )
    _refuse_fault(done.prepared.folder, done.fault)
    return done.prepared


def load_manifest(path: AnyPath) -> Manifest:
    """Read the manifest of a split model.

    Args:
        path: its folder, or `manifest.json`.

    Raises: UsageError if there is none; ManifestError if it is damaged, or a link.
    """
    return manifest_file.load_manifest(Path(path))


@dataclass(frozen=True, slots=True)
class Examined:
    """A split model whose files are what its manifest promises.

    Attributes:
        certificate: of the run just made, or what the manifest held.
        is_saved: the certificate of this run was written into the manifest.
        why_not_saved: why it was not; empty if it was, or nothing was run.
        fault: one sentence that names the shard whose numbers differ; empty if none is known.
    """

    folder: Path
    manifest: Manifest
    certificate: ParityCertificate | NoProof | None
    is_saved: bool
    why_not_saved: str
    fault: str

    @property
    def report(self) -> ParityCertificate | None:
        """Returns: what a run beside the unsplit model found; None if there was none."""
        return self.certificate if isinstance(self.certificate, ParityCertificate) else None


def examine(
    folder: AnyPath,
    source: AnyPath | None = None,
    *,
    quantize: str | None = None,
    imatrix: AnyPath | None = None,
    allow_requantize: bool = False,
    method: Method | None = None,
    on_plan: OnPlan = lambda _plan: None,
    decode_tokens: int | None = None,
    threads: int = 0,
    home: AnyPath | None = None,
    bar: Bar | None = None,
) -> Examined:
    """Do what `verify` does, and leave it to the caller what a difference means. Raises: as `verify`, but ParityError."""
    manifest, base, bar = load_manifest(folder), Path(folder), bar or _bar_of(None)
    base = base if base.is_dir() else base.parent
    home = default_home() if home is None and source is not None else home  # known before the work, not after it
    with bar("Hashing") as progress:
        damaged = damaged_files(base, manifest, progress)
    if damaged:
        raise RefusedError("; ".join(damaged), damaged=len(damaged))
    certificate, why_not_saved = manifest.certificate, ""
    if source is not None:
        with ExitStack() as stack:
            header = stack.enter_context(_opened(source, quantize, imatrix, allow_requantize))
            check_source(manifest, header)
            unsplit = stack.enter_context(whole_model(header, base.resolve().parent, bar))
            progress = stack.enter_context(bar("Proving the shards"))
            certificate = verify_split(
                base,
                unsplit,
                on_progress=lambda share: progress(int(share * 1000), 1000),
                on_plan=on_plan,
                method=method,
                decode_tokens=decode_tokens,
                threads=threads,
                save=False,
            )
        proved = manifest.model_copy(update={"certificate": certificate, "signature": None})
        proved = sign_if_owner(proved, None if home is None else Path(home))
        if not manifest.unproved and not certificate.is_exact:
            why_not_saved = "these files were proved before, and that proof was kept: most likely --source is not the model that they were cut from"
        elif manifest.signature is not None and proved.signature is None:
            why_not_saved = "the manifest is signed by its owner and was left as it is"
        else:
            manifest_file.save_manifest(base, proved)
    is_saved, fault = source is not None and not why_not_saved, fault_of(manifest.content, certificate)
    return Examined(base, manifest, certificate, is_saved, why_not_saved, fault)


def _opened(
    source: AnyPath, quantize: str | None, imatrix: AnyPath | None, allow_requantize: bool
) -> AbstractContextManager[GgufHeader]:
    """The model; an address stays a text."""
    return opened(
        source if isinstance(source, str) else Path(source),
        quantize=quantize,
        imatrix=None if imatrix is None else Path(imatrix),
        allow_requantize=allow_requantize,
    )


def verify(
    folder: AnyPath,
    source: AnyPath | None = None,
    *,
    quantize: str | None = None,
    imatrix: AnyPath | None = None,
    allow_requantize: bool = False,
    method: Method | None = None,
    decode_tokens: int | None = None,
    threads: int = 0,
    home: AnyPath | None = None,
    on_progress: Report | None = None,
) -> ParityCertificate | None:
    """Check the hashes of a split model and, given the unsplit one, that the shards give its very numbers.

    Args:
        folder: of the split model, or its `manifest.json`.
        source: the unsplit GGUF or checkpoint. The certificate that comes of it is written into the manifest, unless that is signed by somebody else.
        quantize, imatrix, allow_requantize: how it was quantised when it was split.
        method: "full" or "quick"; None: full, and quick where the model does not fit into memory.
        decode_tokens: greedy tokens after each prompt; None: 32, fewer where the proof is quick.
        threads: CPU threads; 0: all cores.
        home: whose swarm signs the manifest anew, if it is its owner's; `$SHARDNET_HOME` or ~/.shardnet if None.

    Returns: the certificate: the new one, or the one that the manifest holds; None if parity was never proved.

    Raises: RefusedError, which names each damaged or missing file; ManifestError (the shards are of another model), FamilyRefused, EngineError;
        ParityError if the certificate says that numbers differ.
    """
    examined = examine(
        folder,
        source,
        quantize=quantize,
        imatrix=imatrix,
        allow_requantize=allow_requantize,
        method=method,
        decode_tokens=decode_tokens,
        threads=threads,
        home=home,
        bar=_bar_of(on_progress),
    )
    return _exact(examined).report


def _exact(examined: Examined) -> Examined:
    _refuse_fault(examined.folder, examined.fault)
    return examined


def _refuse_fault(folder: Path, fault: str) -> None:
    if fault:
        raise ParityError(f"the shards in {folder} do not give the unsplit model's numbers: {fault}")


def open_split(folder: AnyPath) -> Examined:
    """Returns: a split model that may be run. Raises: as `verify`; UsageError if some of its shards were cut elsewhere."""
    examined = _exact(examine(folder))
    here, n_shards = examined.manifest.cut_here, examined.manifest.n_shards
    if len(here) < n_shards:
        raise UsageError(
            f"{examined.folder} holds {len(here)} of {n_shards} shards, the others were cut elsewhere: ask a swarm that has them all"
        )
    return examined


def _bar_of(report: Report | None) -> Bar:
    @contextmanager
    def bar(what: str) -> Iterator[OnProgress]:
        if report is None:
            yield lambda _done, _total: None
        else:
            yield lambda done, total: report(what, done / total if total else 1.0)

    return bar
