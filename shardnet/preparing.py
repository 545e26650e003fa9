"""A model made ready to be served: quantised where asked for, cut, proved, its torrents promised, signed by the owner. For `split` and the demo.

Knows the order of these steps. Refuses to know what is shown of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardnet.files import write_whole
from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.proof.steps import Method
from shardnet.inference.proof.verify import OnPlan, verify_split
from shardnet.inference.quantising.model import losses_of
from shardnet.inference.splitting.cutting import OnProgress, find_existing, split_model
from shardnet.inference.splitting.manifest_file import SHARDS, save_manifest
from shardnet.inference.splitting.parts import cut_parts
from shardnet.inference.splitting.plan import SplitPlan
from shardnet.inference.splitting.whole import check_whole_fits, cut_from, whole_file
from shardnet.manifest import Manifest, NoProof, ParityCertificate
from shardnet.node.weights.torrent_files import promise_torrents
from shardnet.swarm.home import Home
from shardnet.swarm.signing import sign_if_owner


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model in a cache.

    Attributes:
        was_there: an earlier run had left its files whole.
        losses: what quantising lost (`losses.LossReport.facts`), None if it was not quantised on the way.
    """

    folder: Path
    manifest: Manifest
    was_there: bool
    losses: dict[str, Any] | None


LOSSES_FILE = ".losses.json"
"""Beside the shards: what quantising lost, so that a repeated split still knows."""


Bar = Callable[[str], AbstractContextManager[OnProgress]]
"""Shows the progress of what its title says, `(done, in all)`."""


def prepare(
    plan: SplitPlan,
    cache: Path,
    home: Path,
    *,
    prove: bool,
    bar: Bar,
    method: Method | None = None,
    on_plan: OnPlan = lambda _plan: None,
    only: Sequence[int] | None = None,
    on_whole: Callable[[Path], None] | None = None,
) -> Prepared:
    """Write a plan's shards into a cache, prove them, and save their manifest.

    Args:
        prove: run the shards against the unsplit model, if both are here; what an earlier run proved is not proved again.
        only: cut these shards alone, of a model that other machines cut other shards of; None: cut all, by this machine alone.
        method, on_plan: as `verify_split`.
        on_whole: called with the unsplit model as a file that llama.cpp opens, which may be gone afterwards.

    Raises: as `split_model`, `cut_parts`, `whole_file` and `verify_split`. A certificate that is not exact is saved, and no error here.
    """
    cannot_prove = _why_not(plan, only)
    prove = prove and not cannot_prove
    existing = find_existing(plan, cache) if only is None else None
    if existing is not None and _is_proved(existing[1], method):
        prove = False
    with ExitStack() as stack:
        to_cut, source = plan, plan.header.path
        if only is not None:
            with bar(f"Cutting {plan.name}") as progress:
                folder, manifest, was_there = cut_parts(plan, only, cache, progress)
        if prove or on_whole is not None:
            is_cut = only is not None or existing is not None
            check_whole_fits(plan.header, cache / SHARDS, 0 if is_cut else plan.nbytes)
            source = stack.enter_context(whole_model(plan.header, cache / SHARDS, bar))
            if plan.header.is_made:
                to_cut = cut_from(plan, source)
        if on_whole is not None:
            on_whole(source)
        if only is None:
            was_there = existing is not None
            with bar(f"Splitting {plan.name}") as progress:
                folder, manifest = split_model(to_cut, cache, progress)
        losses = _losses(plan, folder, was_there)  # kept before the proof, which may be interrupted
        if cannot_prove and manifest.certificate is None:
            manifest = manifest.model_copy(update={"certificate": NoProof(reason=cannot_prove), "signature": None})
        if prove and not _is_proved(manifest, method):
            with bar("Proving the shards") as progress:
                certificate = verify_split(
                    folder,
                    source,
                    on_progress=lambda share: progress(int(share * 1000), 1000),
                    on_plan=on_plan,
                    method=method,
                )
            manifest = manifest.model_copy(update={"certificate": certificate})
    if manifest.signature is None or Home(home).is_owner:  # nobody else could sign it again
        manifest = promise_torrents(folder, manifest)
        if manifest.made_s is None:
            manifest = manifest.model_copy(update={"made_s": int(time.time())})
    manifest = sign_if_owner(manifest, home)
    save_manifest(folder, manifest)
    return Prepared(folder, manifest, was_there, losses)


def _why_not(plan: SplitPlan, only: Sequence[int] | None) -> str:
    """Returns: why the shards cannot be run against the unsplit model; "" if they can."""
    if plan.header.origins:
        return "it was cut from an address, and the unsplit model was not there to run beside it"
    if only is not None and set(only) != set(range(len(plan.shards))):
        return "its shards were cut apart, and were never together to be run beside the unsplit model"
    return ""


def _losses(plan: SplitPlan, folder: Path, was_there: bool) -> dict[str, Any] | None:
    if not was_there:
        written = {
            out.source.name: out.source for file in plan.shards for out in file.tensors if out.source is not None
        }
        report = losses_of(written.values())
        if report is None:
            return None
        write_whole(folder / LOSSES_FILE, json.dumps(report.facts()).encode())
    try:
        found: dict[str, Any] = json.loads((folder / LOSSES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # not quantised, or nobody knows any more
    return found


@contextmanager
def whole_model(header: GgufHeader, base: Path, bar: Bar) -> Iterator[Path]:
    """`whole_file`, its progress shown where there is something to write."""
    if not header.is_made:
        yield header.path
        return
    with ExitStack() as stack:
        with bar("Writing the whole model once") as progress:
            path = stack.enter_context(whole_file(header, base, progress))
        yield path


def _is_proved(manifest: Manifest, method: Method | None) -> bool:
    """True if there is an exact certificate; not a quick one where a full one is asked for."""
    certificate = manifest.certificate
    if not isinstance(certificate, ParityCertificate) or not certificate.is_exact:
        return False
    return method != "full" or certificate.method == "full"
