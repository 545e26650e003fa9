"""A model made ready to be served: cut, proved, its torrents promised, signed by the swarm's owner. For `shardnet split` and the demo.

Knows the order of these steps. Refuses to know what is shown of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.proof.verify import verify_split
from shardnet.inference.splitting.cutting import OnProgress, find_existing, split_model
from shardnet.inference.splitting.manifest_file import SHARDS, save_manifest
from shardnet.inference.splitting.parts import cut_parts
from shardnet.inference.splitting.plan import SplitPlan
from shardnet.inference.splitting.whole import check_whole_fits, whole_file
from shardnet.manifest import Manifest, NoProof
from shardnet.node.weights.torrent_files import promise_torrents
from shardnet.swarm.home import Home
from shardnet.swarm.signing import sign_if_owner


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model in a cache. `was_there`: an earlier run had left its files whole."""

    folder: Path
    manifest: Manifest
    was_there: bool


Bar = Callable[[str], AbstractContextManager[OnProgress]]
"""Shows the progress of what its title says, `(done, in all)`."""


def prepare(
    plan: SplitPlan, cache: Path, home: Path, *, prove: bool, bar: Bar, only: Sequence[int] | None = None
) -> Prepared:
    """Write a plan's shards into a cache, prove them, and save their manifest.

    Args:
        prove: run the shards against the unsplit model, if both are here; what an earlier run proved is not proved again.
        only: cut these shards alone, of a model that other machines cut other shards of; None: cut all, by this machine alone.

    Raises: as `split_model`, `cut_parts`, `whole_file` and `verify_split`. A certificate that is not exact is saved, and no error here.
    """
    cannot_prove = _why_not(plan, only)
    prove = prove and not cannot_prove
    if only is None:
        existing = find_existing(plan, cache)
        was_there = existing is not None
        if prove and (existing is None or not _is_proved(existing[1])):
            check_whole_fits(plan.header, cache / SHARDS, 0 if was_there else plan.nbytes)
        with bar(f"Splitting {plan.name}") as progress:
            folder, manifest = split_model(plan, cache, progress)
    else:
        with bar(f"Cutting {plan.name}") as progress:
            folder, manifest, was_there = cut_parts(plan, only, cache, progress)
    if cannot_prove and manifest.certificate is None:
        manifest = manifest.model_copy(update={"certificate": NoProof(reason=cannot_prove), "signature": None})
    if prove and not _is_proved(manifest):
        with whole_model(plan.header, cache / SHARDS, bar) as source, bar("Proving the shards") as progress:
            certificate = verify_split(folder, source, on_progress=lambda share: progress(int(share * 1000), 1000))
        manifest = manifest.model_copy(update={"certificate": certificate})
    if manifest.signature is None or Home(home).is_owner:  # nobody else could sign it again
        manifest = promise_torrents(folder, manifest)
        if manifest.made_s is None:
            manifest = manifest.model_copy(update={"made_s": int(time.time())})
    manifest = sign_if_owner(manifest, home)
    save_manifest(folder, manifest)
    return Prepared(folder, manifest, was_there)


def _why_not(plan: SplitPlan, only: Sequence[int] | None) -> str:
    """Returns: why the shards cannot be run against the unsplit model; "" if they can."""
    if plan.header.origins:
        return "it was cut from an address, and the unsplit model was not there to run beside it"
    if only is not None and set(only) != set(range(len(plan.shards))):
        return "its shards were cut apart, and were never together to be run beside the unsplit model"
    return ""


@contextmanager
def whole_model(header: GgufHeader, base: Path, bar: Bar) -> Iterator[Path]:
    """`whole_file`, its progress shown where there is something to write."""
    if not header.is_made:
        yield header.path
        return
    with ExitStack() as stack:
        with bar("Writing the whole model for the proof") as progress:
            path = stack.enter_context(whole_file(header, base, progress))
        yield path


def _is_proved(manifest: Manifest) -> bool:
    return manifest.certificate is not None and manifest.certificate.is_exact
