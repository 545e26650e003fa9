"""The models that this node knows, and which of their shards it may hold. Pure."""

from __future__ import annotations

from pathlib import Path

from shardnet.errors import ManifestError, RefusedError, ShardNotFound
from shardnet.ids import ShardKey, short
from shardnet.inference.splitting.manifest_file import model_folder
from shardnet.manifest import Manifest, by_claim
from shardnet.node.shards.assignment import Assignment
from shardnet.node.shards.events import LocalModel


class Catalogue:
    """Manifests by model id. Those found in the cache were put there by the node's user; others need the owner's signature."""

    def __init__(self, cache: Path, assignment: Assignment, *, require_proof: bool = False) -> None:
        self._cache = cache
        self._require_proof = require_proof
        self._assignment = assignment
        self.models: dict[str, LocalModel] = {}

    def find(self, model: str) -> LocalModel:
        """Returns: the model of that id or name. Raises: ManifestError if it is not known here."""
        if model in self.models:
            return self.models[model]
        named = by_claim(one.manifest for one in self.models.values() if one.manifest.name == model)
        if not named:
            raise ManifestError(f"this node knows no model {model!r}")
        return self.models[named[0].model_id]

    def name_of(self, key: ShardKey) -> str:
        """Returns: what people call the shard's model."""
        model = self.models.get(key[0])
        return model.manifest.name if model is not None else short(key[0])

    def learn(self, manifest: Manifest, model_id: str, *, is_signed: bool) -> LocalModel | None:
        """Take in a manifest that came with a command. Returns: the model if that is news, to be kept in its folder.

        Raises: ManifestError if it is of another model, neither signed nor here already, or promises other bytes than the one that is here.
        """
        if manifest.model_id != model_id:
            raise ManifestError(
                f"the command is about model {short(model_id)}, its manifest about {short(manifest.model_id)}"
            )
        known = self.models.get(model_id)
        if known is not None:
            _check_same_bytes(known.manifest, manifest)
        if known is not None and (not is_signed or known.manifest.signature is not None):
            return None  # put here by hand, or signed as well: it stays
        if known is not None and set(known.manifest.cut_here) - set(manifest.cut_here):
            return None  # it knows shards that were cut here, and nobody else can
        if not is_signed:
            raise ManifestError(
                f"the manifest of {manifest.name} is not signed by the swarm's owner, and this node does not have it: "
                "split the model on the owner's machine, or copy manifest.json into this node's models cache"
            )
        folder = known.folder if known is not None else model_folder(self._cache, manifest)
        self.models[model_id] = LocalModel(manifest, folder)
        return self.models[model_id]

    def kept_out(self, model_id: str) -> str:
        """Returns: why a model is not to be run here, "" if it may be. One that is not known yet may be."""
        model = self.models.get(model_id)
        reason = model.manifest.unproved if model is not None and self._require_proof else ""
        return (
            f"this node's models.require_proof keeps {self.name_of(ShardKey((model_id, 0)))} out: {reason}"
            if reason
            else ""
        )

    def check_may_hold(self, key: ShardKey) -> None:
        """Raises: ManifestError if the model has no such shard; RefusedError if it is kept out, or the node's user bound it to others."""
        model = self.models.get(key[0])
        if model is not None and key[1] >= model.manifest.n_shards:
            raise ManifestError(f"model {model.manifest.name} has no shard {key[1]}: it has {model.manifest.n_shards}")
        if reason := self.kept_out(key[0]):
            raise RefusedError(reason)
        if not self._assignment.admits(*key, model.manifest.name if model else None):
            bound = ", ".join(map(str, self._assignment.bindings))
            raise RefusedError(f"this node's user bound it to shard {bound}: it takes no other")

    def not_found(self, key: ShardKey) -> ShardNotFound:
        """Returns: the error for a shard without a file."""
        return ShardNotFound(
            f"shard {key[1]} of {self.name_of(key)} is not in this node's models cache ({self._cache}), "
            "and it has nowhere to get it from: copy the shard's file there, or load it on a node that has it",
            model_id=key[0],
            shard_id=key[1],
        )

    def no_manifest(self, key: ShardKey, path: Path | None) -> ManifestError:
        """Returns: the error for a shard of a model without a manifest."""
        what = f"{path} cannot be proved" if path is not None else f"model {short(key[0])} is not known here"
        return ManifestError(f"{what}: its manifest.json is not in this node's models cache; copy it there")


def _check_same_bytes(known: Manifest, offered: Manifest) -> None:
    """The id of a model that is cut in parts does not cover all of its weights. Raises: ManifestError if shards are of two models."""
    for shard_id in set(known.cut_here) & set(offered.cut_here):
        if known.sha256_of(shard_id) != offered.sha256_of(shard_id):
            raise ManifestError(
                f"the manifest of {offered.name} promises other bytes for shard {shard_id} than the one in this node's models cache: "
                "they were cut of two versions of one model; delete the model's folder here, and cut it again"
            )
