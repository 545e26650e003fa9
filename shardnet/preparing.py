"""A model made ready to be served: cut, proved, its torrents promised, signed by the swarm's owner. For `shardnet split` and the demo.

Knows the order of these steps. Refuses to know what is shown of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from shardnet.inference.proof.verify import verify_split
from shardnet.inference.splitting.cutting import OnProgress, find_existing, split_model
from shardnet.inference.splitting.manifest_file import save_manifest
from shardnet.inference.splitting.plan import SplitPlan
from shardnet.manifest import Manifest
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


def prepare(plan: SplitPlan, cache: Path, home: Path, *, prove: bool, bar: Bar) -> Prepared:
    """Write a plan's shards into a cache, prove them, and save their manifest.

    Args:
        prove: run the shards against the unsplit model; what an earlier run proved is not proved again.

    Raises: as `split_model` and `verify_split`. A certificate that is not exact is saved, and no error here.
    """
    was_there = find_existing(plan, cache) is not None
    with bar(f"Splitting {plan.name}") as progress:
        folder, manifest = split_model(plan, cache, progress)
    certificate = manifest.certificate
    if prove and (certificate is None or not certificate.is_exact):
        with bar("Proving the shards") as progress:
            certificate = verify_split(
                folder, plan.header.path, on_progress=lambda share: progress(int(share * 1000), 1000)
            )
        manifest = manifest.model_copy(update={"certificate": certificate})
    if manifest.signature is None or Home(home).is_owner:  # nobody else could sign it again
        manifest = promise_torrents(folder, manifest)
        if manifest.made_s is None:
            manifest = manifest.model_copy(update={"made_s": int(time.time())})
    manifest = sign_if_owner(manifest, home)
    save_manifest(folder, manifest)
    return Prepared(folder, manifest, was_there)
