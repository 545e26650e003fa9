"""The manifest: what a split model is made of, and the proof that the split changes nothing.

`model_id` is the SHA-256 of the canonical JSON of `ModelContent`. The content names every shard by `content_sha256`: the hash of its file
with the value of `shardnet.model_id` blanked, since a file cannot contain the hash of itself. So whoever holds only a `model_id` can prove
a manifest, and with it each shard, right. The plain `sha256` and the torrent's info-hash stand beside it, outside the hash, and are covered by
the swarm owner's signature. (docs/decisions/0001-model-id.md)

A model that several machines cut, each its own shards of it (`split --only`), has an id before anybody has read all of it: its content names
every shard by `header_sha256`, and the unsplit weights by samples. (docs/decisions/0007-model-id-of-a-plan.md)

Pure data: reading and writing files is `shardnet.inference.splitting.manifest_file`'s business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from shardnet.errors import ManifestError
from shardnet.faults import sentence
from shardnet.ids import ModelId, Sha256
from shardnet.shards import Frozen, LayerRange

MANIFEST_FORMAT = 1
PLANNED_FORMAT = 2
"""Of content that was known before the weights were read."""
BLANK_MODEL_ID = "0" * 64
"""What stands in place of `shardnet.model_id` while `content_sha256` is computed."""

LONGEST_NAME = 96
"""Characters of a model's name."""
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


def _is_none(value: object) -> bool:
    return value is None


class ShardContent(Frozen):
    """What one shard is, independent of the model id written into it."""

    shard_id: int = Field(ge=0, lt=10_000)
    layers: LayerRange
    file: str = Field(pattern=FILE_NAME, description="file name beside the manifest")
    bytes: int = Field(gt=0)
    content_sha256: Sha256 | None = Field(default=None, exclude_if=_is_none)
    header_sha256: Sha256 | None = Field(
        default=None,
        exclude_if=_is_none,
        description="of the file's header, the model id blanked; in place of `content_sha256`",
    )
    kv_bytes_per_token: int = Field(ge=0, description="bytes of f16 KV cache one token takes in this shard's layers")


class FileContent(Frozen):
    """A file beside the shards: the tokenizer."""

    file: str = Field(pattern=FILE_NAME)
    bytes: int = Field(gt=0)
    sha256: Sha256


class ModelContent(Frozen):
    """Everything that `model_id` promises."""

    format: int = MANIFEST_FORMAT
    architecture: str = Field(min_length=1, max_length=64)
    n_layers: int = Field(gt=0, le=10_000)
    n_embd: int = Field(gt=0, description="width of a hidden state, elements")
    n_vocab: int = Field(gt=0, le=10_000_000)
    n_ctx_train: int = Field(gt=0, description="context length of the training, tokens")
    n_params: int = Field(gt=0)
    quantisation: str = Field(max_length=64, description="the file type, as llama.cpp names it: Q4_1, Q4_K_M, ...")
    shards: tuple[ShardContent, ...] = Field(min_length=1, strict=False)
    tokenizer: FileContent = Field(description="a GGUF with the vocabulary and the chat template, no tensors")
    weights_sha256: Sha256 | None = Field(
        default=None,
        exclude_if=_is_none,
        description="of samples of the unsplit weights, where no shard's content is named",
    )

    @model_validator(mode="after")
    def _shards_cover_all_layers(self) -> Self:
        expected = 0
        for index, shard in enumerate(self.shards):
            if shard.shard_id != index:
                raise ValueError(f"shard {index} is numbered {shard.shard_id}")
            if shard.layers.first != expected:
                raise ValueError(f"shard {index} starts at layer {shard.layers.first}, not {expected}")
            expected = shard.layers.end
        if expected != self.n_layers:
            raise ValueError(f"shards end at layer {expected} of {self.n_layers}")
        return self

    @model_validator(mode="after")
    def _shards_are_named_one_way(self) -> Self:
        for shard in self.shards:
            if (shard.content_sha256 is None) != self.is_planned or (shard.header_sha256 is None) == self.is_planned:
                raise ValueError(f"shard {shard.shard_id} needs one hash, that of its content or that of its header")
        return self

    @property
    def is_planned(self) -> bool:
        """True if the id was known before the weights were read, so that each machine could cut shards of its own."""
        return self.weights_sha256 is not None

    @property
    def model_id(self) -> str:
        """Returns: SHA-256, hex, of this content's canonical JSON."""
        return hashlib.sha256(canonical_json(self)).hexdigest()


class ShardFile(Frozen):
    """How the finished file of one shard is recognised: derived from its content and the model id. And what running it takes."""

    sha256: Sha256 | None = Field(description="null: the shard was cut on another machine")
    info_hash: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="BitTorrent v2 info-hash of its open torrent"
    )
    step_bytes: int | None = Field(
        default=None,
        ge=0,
        exclude_if=_is_none,
        description="bytes of weights that one decode step of one token reads in the whole model (no embedding table, and of experts those in use), "
        "this shard's share of them by what its layers, and the head, cost",
    )


class BoundaryReport(Frozen):
    """The largest difference at the output of one shard."""

    shard_id: int = Field(ge=0)
    layer_end: int = Field(gt=0)
    max_abs_diff: float = Field(ge=0)


class ParityCertificate(Frozen):
    """The proof that the shards, run as a chain, give the numbers of the unsplit model."""

    llama_cpp: str = Field(description="version of llama-cpp-python that ran both sides")
    cpu: str = Field(default="", description="the machine's processor, since kernels differ by instruction set")
    prompt_tokens: int = Field(gt=0)
    decode_tokens: int = Field(ge=0)
    boundaries: tuple[BoundaryReport, ...] = Field(strict=False)
    max_abs_logit_diff: float = Field(ge=0)
    tokens_equal: bool
    method: Literal["full", "quick"] = Field(
        default="full",
        exclude_if=lambda value: value == "full",
        description="full: each prompt by itself, as nodes run them; quick: all prompts in one batch, and few decode steps",
    )
    why: str = Field(
        default="",
        max_length=500,
        exclude_if=lambda value: value == "",
        description="why it is quick, and whether the weights were computed with as they lie in the file",
    )
    repacked: bool = Field(
        default=True,
        exclude_if=lambda value: value,
        description="false: weights were computed with as they lie in the file, as by pipelines with streamed shards, whose last digits are others",
    )

    @property
    def is_exact(self) -> bool:
        """True if not a single bit differed."""
        return self.tokens_equal and self.max_abs_logit_diff == 0 and all(b.max_abs_diff == 0 for b in self.boundaries)


class NoProof(Frozen):
    """In place of a certificate: the shards could not be run against the unsplit model."""

    proof: Literal["none"] = "none"
    reason: str = Field(min_length=1, max_length=500)

    @property
    def is_exact(self) -> bool:
        """Nobody knows."""
        return False


class Manifest(Frozen):
    """One model in one quantisation, cut into shards. Stored as `manifest.json` beside them."""

    model_id: ModelId
    name: str = Field(
        min_length=1,
        max_length=LONGEST_NAME,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$",
        description="what people call it",
    )
    content: ModelContent
    files: tuple[ShardFile, ...] = Field(strict=False, description="one for each shard, in order")
    certificate: ParityCertificate | NoProof | None = None
    made_s: int | None = Field(
        default=None,
        ge=0,
        exclude_if=_is_none,
        description="when `shardnet split` made it, seconds of Unix time; of two models with one name the newer serves",
    )
    signature: str | None = Field(
        default=None, max_length=512, description="the swarm owner's, base64, over `signed_bytes`"
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.model_id != self.content.model_id:
            raise ValueError("model_id is not the hash of the content")
        if len(self.files) != len(self.content.shards):
            raise ValueError(f"{len(self.files)} files for {len(self.content.shards)} shards")
        if not self.content.is_planned and any(file.sha256 is None for file in self.files):
            raise ValueError("a shard has no SHA-256")
        return self

    def sha256_of(self, shard_id: int) -> str:
        """Returns: what a shard's file has to hash to. Raises: ManifestError if it was cut on another machine, and nobody here knows."""
        digest = self.files[shard_id].sha256
        if digest is None:
            raise ManifestError(
                f"the manifest of {self.name} does not know the bytes of shard {shard_id}, which was cut on another machine: "
                f"cut it here (shardnet split ... --only {shard_id}), or run it where it was cut"
            )
        return digest

    @property
    def cut_here(self) -> tuple[int, ...]:
        """Returns: ids of the shards whose bytes it knows."""
        return tuple(index for index, file in enumerate(self.files) if file.sha256 is not None)

    @property
    def unproved(self) -> str:
        """Returns: in words why nobody knows that the shards give the unsplit model's numbers; "" if a certificate says that they do."""
        if self.certificate is None:
            return "its shards were never run against the unsplit model"
        if isinstance(self.certificate, NoProof):
            return self.certificate.reason
        return "" if self.certificate.is_exact else "its shards do not give the unsplit model's numbers"

    @property
    def signed_bytes(self) -> bytes:
        """Returns: what the swarm's owner signs: everything but the signature."""
        return b"shardnet manifest\n" + canonical_json(self.model_copy(update={"signature": None}))

    @property
    def n_shards(self) -> int:
        """Returns: number of shards."""
        return len(self.content.shards)

    @property
    def total_bytes(self) -> int:
        """Returns: bytes of all shard files together."""
        return sum(shard.bytes for shard in self.content.shards)

    @property
    def kv_bytes_per_token(self) -> int:
        """Returns: bytes of f16 KV cache of one token over all layers."""
        return sum(shard.kv_bytes_per_token for shard in self.content.shards)

    def to_json(self) -> str:
        """Returns: the text of `manifest.json`: the same for the same manifest."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def by_claim(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Sort models that have one name: the first is the one that the name means, the newest proved one; the others are asked for by id.

    A certificate that is exact beats none, and none beats one that found a difference; then the one made last; where that says nothing, the
    greater `model_id`. All of it stands in the manifest under the owner's signature, so every member comes to the same answer.
    """
    return sorted(manifests, key=lambda one: (_proof_rank(one), one.made_s or 0, one.model_id), reverse=True)


def claim(holder: Manifest) -> str:
    """Returns: why a name means the first of `by_claim`, for a sentence."""
    return "the newest proved one" if _proof_rank(holder) == 2 else "the newest one, as none is proved"


def _proof_rank(manifest: Manifest) -> int:
    if manifest.certificate is None or isinstance(manifest.certificate, NoProof):
        return 1
    return 2 if manifest.certificate.is_exact else 0


def canonical_json(data: Frozen) -> bytes:
    """Returns: UTF-8 JSON with sorted keys and no spaces: one byte string for one value."""
    return json.dumps(data.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def parse_manifest(text: str | bytes, *, source: str) -> Manifest:
    """Read a manifest from JSON.

    Args:
        source: where the text came from, for the error's sentence.

    Raises: ManifestError if it is not a manifest, or its `model_id` is not the hash of its content.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValueError as error:
        raise ManifestError(f"{source} is not a usable manifest: {_what_is_wrong(error)}") from error


def _what_is_wrong(error: ValueError) -> str:
    """Returns: the first fault in a person's words: none of the input, which may be binary and long."""
    return sentence(error) if isinstance(error, ValidationError) else str(error)
