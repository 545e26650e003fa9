"""The manifest proves itself: whoever knows a model id can tell a right manifest from a wrong one."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from shardnet.errors import ManifestError
from shardnet.manifest import (
    FileContent,
    Manifest,
    ModelContent,
    NoProof,
    ParityCertificate,
    ShardContent,
    ShardFile,
    by_claim,
    parse_manifest,
)
from shardnet.shards import LayerRange


def content(cuts: tuple[int, ...] = (0, 4, 8)) -> ModelContent:
    shards = tuple(
        ShardContent(
            shard_id=index,
            layers=LayerRange(first=first, end=end),
            file=f"shard-{index}.gguf",
            bytes=1000,
            content_sha256=f"{index:064x}",
            kv_bytes_per_token=128,
        )
        for index, (first, end) in enumerate(pairwise(cuts))
    )
    return ModelContent(
        architecture="llama",
        n_layers=cuts[-1],
        n_embd=64,
        n_vocab=256,
        n_ctx_train=512,
        n_params=10_000,
        quantisation="Q4_0",
        shards=shards,
        tokenizer=FileContent(file="tokenizer.gguf", bytes=100, sha256="a" * 64),
    )


def manifest() -> Manifest:
    what = content()
    files = tuple(ShardFile(sha256=f"{index + 7:064x}") for index in range(len(what.shards)))
    return Manifest(model_id=what.model_id, name="tiny-Q4_0", content=what, files=files)


def test_a_manifest_survives_its_own_json() -> None:
    assert parse_manifest(manifest().to_json(), source="test") == manifest()


def proof(diff: float) -> ParityCertificate:
    return ParityCertificate(
        llama_cpp="1", prompt_tokens=1, decode_tokens=1, boundaries=(), max_abs_logit_diff=diff, tokens_equal=True
    )


def test_a_name_means_what_is_proved_before_what_is_not_and_then_the_newest() -> None:
    def made(made_s: int | None, certificate: ParityCertificate | None) -> Manifest:
        return manifest().model_copy(update={"made_s": made_s, "certificate": certificate})

    order = [made(2, proof(0)), made(1, proof(0)), made(3, None), made(None, None), made(4, proof(0.5))]
    assert by_claim(order[::-1]) == by_claim(order) == order


def test_two_alike_in_all_else_are_told_apart_by_their_ids() -> None:
    one = manifest()
    other = one.model_copy(update={"model_id": "f" * 64})
    assert by_claim([one, other]) == by_claim([other, one]) == [other, one]


def test_a_manifest_without_a_date_has_the_json_and_the_signed_bytes_that_it_always_had() -> None:
    assert "made_s" not in manifest().to_json()
    assert b"made_s" not in manifest().signed_bytes
    dated = manifest().model_copy(update={"made_s": 7})
    assert b'"made_s":7' in dated.signed_bytes
    assert dated.model_id == manifest().model_id


def test_the_same_content_has_the_same_model_id() -> None:
    assert content().model_id == content().model_id
    assert content((0, 3, 8)).model_id != content().model_id


@pytest.mark.parametrize("field", ["n_layers", "n_embd", "n_vocab", "n_params"])
def test_an_altered_content_is_refused_because_its_hash_is_another(field: str) -> None:
    data = json.loads(manifest().to_json())
    data["content"][field] += 1 if field != "n_layers" else 0
    if field == "n_layers":
        data["content"]["shards"][0]["content_sha256"] = "f" * 64
    with pytest.raises(ManifestError, match="model_id is not the hash of the content"):
        parse_manifest(json.dumps(data), source="test")


def test_a_gap_between_shards_is_refused() -> None:
    data = json.loads(manifest().to_json())
    data["content"]["shards"][1]["layers"]["first"] = 5
    with pytest.raises(ManifestError, match="starts at layer 5"):
        parse_manifest(json.dumps(data), source="test")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/abs.gguf", ".hidden", "a/b.gguf", ""])
def test_a_file_name_can_never_leave_its_folder(name: str) -> None:
    data = json.loads(manifest().to_json())
    data["content"]["shards"][0]["file"] = name
    with pytest.raises(ManifestError):
        parse_manifest(json.dumps(data), source="test")


def test_the_signature_covers_hashes_name_and_certificate_but_not_itself() -> None:
    plain = manifest()
    assert plain.model_copy(update={"signature": "c2ln"}).signed_bytes == plain.signed_bytes
    assert plain.model_copy(update={"name": "other"}).signed_bytes != plain.signed_bytes
    other_files = (ShardFile(sha256="e" * 64), plain.files[1])
    assert plain.model_copy(update={"files": other_files}).signed_bytes != plain.signed_bytes


def test_a_certificate_is_exact_only_when_no_bit_differs() -> None:
    exact = ParityCertificate(
        llama_cpp="0.3.36", prompt_tokens=5, decode_tokens=5, boundaries=(), max_abs_logit_diff=0.0, tokens_equal=True
    )
    assert exact.is_exact
    assert not exact.model_copy(update={"max_abs_logit_diff": 1e-9}).is_exact
    assert not exact.model_copy(update={"tokens_equal": False}).is_exact


def test_garbage_is_named_by_its_source() -> None:
    with pytest.raises(ManifestError, match=r"/x/manifest\.json"):
        parse_manifest(b"\x00\x01", source="/x/manifest.json")


def planned(*known: int) -> Manifest:
    """Returns: the manifest of a model that is cut in parts, which knows the bytes of some shards."""
    shards = [
        one.model_copy(update={"content_sha256": None, "header_sha256": f"{one.shard_id:064x}"})
        for one in content().shards
    ]
    what = content().model_copy(update={"shards": tuple(shards), "weights_sha256": "b" * 64, "format": 2})
    files = tuple(ShardFile(sha256="c" * 64 if index in known else None) for index in range(2))
    return Manifest(model_id=what.model_id, name="tiny-Q4_0", content=what, files=files)


def test_a_model_that_is_cut_in_parts_has_one_id_whichever_shards_are_known() -> None:
    assert planned().model_id == planned(0).model_id == planned(0, 1).model_id != manifest().model_id
    one = parse_manifest(planned(1).to_json(), source="test")
    assert one == planned(1)
    assert one.cut_here == (1,)
    assert one.sha256_of(1) == "c" * 64
    with pytest.raises(ManifestError, match=r"does not know the bytes of shard 0.*--only 0"):
        one.sha256_of(0)


def test_a_shard_without_a_hash_is_refused_where_the_whole_was_cut_at_once() -> None:
    data = json.loads(manifest().to_json())
    data["files"][1]["sha256"] = None
    with pytest.raises(ManifestError, match="a shard has no SHA-256"):
        parse_manifest(json.dumps(data), source="test")


def test_shards_are_all_named_one_way() -> None:
    data = json.loads(planned(0).to_json())
    data["content"]["shards"][1]["content_sha256"] = "d" * 64
    with pytest.raises(ManifestError, match="shard 1 needs one hash"):
        parse_manifest(json.dumps(data), source="test")


def test_what_was_not_proved_says_why() -> None:
    assert manifest().unproved == "its shards were never run against the unsplit model"
    none = manifest().model_copy(update={"certificate": NoProof(reason="it was cut from an address")})
    assert parse_manifest(none.to_json(), source="test") == none
    assert none.unproved == "it was cut from an address"
    assert manifest().model_copy(update={"certificate": proof(0.5)}).unproved.startswith("its shards do not give")
    proved = manifest().model_copy(update={"certificate": proof(0)})
    assert proved.unproved == ""
    assert by_claim([none, proved]) == [proved, none]
