"""Framing: whole frames come out however the bytes arrive, and nothing that a peer sends can do worse than end its own connection."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from shardnet import wire
from shardnet.errors import LocalProtocolError, RemoteProtocolError
from shardnet.messages import MESSAGES, AnyMessage, Ping
from shardnet.shards import Dtype, TensorSpec
from shardnet.wire import GREETING, PREFIX, UNTRUSTED, Frame, FrameDecoder, Limits, encode
from tests.support.golden_messages import COMMAND, SAMPLES, payloads

FRAMES = tuple(b"".join(encode(MESSAGES, message, payloads(message))) for message in SAMPLES)
STREAM = b"".join(FRAMES)


def ping(size: int) -> tuple[Ping, bytes]:
    spec = TensorSpec(name="padding", dtype=Dtype.FLOAT32, shape=(size // 4,))
    return Ping(command_id=COMMAND, tensors=(spec,)), random.Random(size).randbytes(size)


def decoder(limits: Limits = Limits()) -> FrameDecoder[AnyMessage]:  # noqa: B008 - frozen
    return FrameDecoder(MESSAGES, limits)


def prefix(header: int, payload: int, *, magic: bytes = b"SN", version: int = 1, kind: int = 0) -> bytes:
    return PREFIX.pack(magic, version, kind, header, payload)


def by_reading_into_place(data: bytes, sizes: list[int]) -> list[Frame[AnyMessage]]:
    """As the transport does it: bytes are put where `get_buffer` says."""
    into, at = decoder(), 0
    frames: list[Frame[AnyMessage]] = []
    while at < len(data):
        space = into.get_buffer()
        count = min(len(space), sizes[at % len(sizes)], len(data) - at)
        space[:count] = data[at : at + count]
        frames += into.advance(count)
        at += count
    assert into.buffered == 0
    return frames


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=5))
@settings(max_examples=60)
def test_frames_come_out_the_same_however_the_bytes_are_cut(sizes: list[int]) -> None:
    frames = by_reading_into_place(STREAM, sizes)
    assert [frame.message for frame in frames] == list(SAMPLES)
    assert [[bytes(p) for p in frame.payloads] for frame in frames] == [payloads(message) for message in SAMPLES]


def test_one_byte_at_a_time_gives_every_frame() -> None:
    into = decoder()
    frames = [frame for i in range(len(STREAM)) for frame in into.feed(STREAM[i : i + 1])]
    assert [frame.message for frame in frames] == list(SAMPLES)


@pytest.mark.parametrize(
    "size", [0, 4, wire.SCRATCH_BYTES - 20, wire.SCRATCH_BYTES, 70_000, 1 << 20, (1 << 20) + 4, 5 << 20]
)
@pytest.mark.parametrize("piece", [1000, 16_384, 262_144, 10 << 20])
def test_payloads_of_every_size_arrive_whole_between_small_frames(size: int, piece: int) -> None:
    message, data = ping(size)
    stream = FRAMES[0] + b"".join(encode(MESSAGES, message, [data])) + FRAMES[1]
    into = decoder()
    frames = [frame for at in range(0, len(stream), piece) for frame in into.feed(stream[at : at + piece])]
    assert [frame.message for frame in frames] == [SAMPLES[0], message, SAMPLES[1]]
    assert bytes(frames[1].payloads[0]) == data


def test_kept_payloads_do_not_change_when_later_frames_arrive() -> None:
    into = decoder()
    kept: list[Frame[AnyMessage]] = []
    expected = []
    for size in (64, 128, 20_000, 64):
        message, data = ping(size)
        expected.append(data)
        kept += into.feed(b"".join(encode(MESSAGES, message, [data])))
    assert [bytes(frame.payloads[0]) for frame in kept] == expected


def test_a_tensor_is_found_by_its_name_and_an_unknown_name_gives_none() -> None:
    message, data = ping(8)
    (frame,) = decoder().feed(b"".join(encode(MESSAGES, message, [data])))
    found = frame.payload("padding")
    assert found is not None
    assert bytes(found) == data
    assert frame.payload("hidden") is None


def test_payloads_that_are_not_what_the_message_says_are_our_own_bug() -> None:
    message, data = ping(8)
    for wrong in ([], [data[:4]], [data, data]):
        with pytest.raises(LocalProtocolError):
            encode(MESSAGES, message, wrong)


@pytest.mark.parametrize(
    ("bad", "part_of_sentence"),
    [
        (prefix(10, 0, magic=b"GE"), "does not speak"),
        (b"GET / HTTP/1.1\r\n", "does not speak"),
        (b"\x16\x03\x01" + bytes(20), "does not speak"),
        (prefix(10, 0, version=2), "version 2"),
        (prefix(10, 0, kind=9), "version 1"),
        (prefix(10, 0, kind=1) + bytes(10), "malformed"),
        (prefix(38, 0, kind=1) + b"\xff" * 38, "malformed"),
        (prefix(33, 0, kind=2) + bytes(33), "malformed"),
        (prefix(35, 0, kind=2) + bytes(35), "malformed"),
        (prefix(34, 0, kind=2) + bytes(30) + b"\x01\0\0\0", "malformed"),
        (prefix(2**32 - 1, 0), "over the limit"),
        (prefix(10, 2**63), "over the limit"),
        (prefix(10, 2**64 - 1), "over the limit"),
        (prefix(wire.MAX_HEADER_BYTES + 1, 0), "over the limit"),
        (prefix(10, wire.MAX_PAYLOAD_BYTES + 1), "over the limit"),
        (prefix(2, 0) + b"{}", "malformed"),
        (prefix(0, 0), "malformed"),
        (prefix(4, 0) + b"null", "malformed"),
        (prefix(14, 0) + b'{"type":"NOPE"', "malformed"),
        (prefix(15, 0) + b'{"type":"NOPE"}', "malformed"),
        (prefix(100_000, 0) + b"[" * 100_000, "malformed"),
        (prefix(2, 0) + b"\xff\xfe", "malformed"),
    ],
)
def test_what_is_no_frame_is_refused_with_a_sentence(bad: bytes, part_of_sentence: str) -> None:
    with pytest.raises(RemoteProtocolError, match=part_of_sentence):
        list(decoder().feed(bad))


def test_a_length_that_lies_is_refused_before_any_memory_is_taken() -> None:
    tracemalloc.start()
    try:
        for header, payload in (
            (2**32 - 1, 0),
            (64, 2**63),
            (wire.MAX_HEADER_BYTES + 1, 0),
            (64, wire.MAX_PAYLOAD_BYTES + 1),
        ):
            with pytest.raises(RemoteProtocolError):
                list(decoder().feed(prefix(header, payload)))
        assert tracemalloc.get_traced_memory()[1] < 256 << 10
    finally:
        tracemalloc.stop()


def test_a_payload_that_no_tensor_explains_is_refused_before_it_arrives() -> None:
    header = MESSAGES.adapter.dump_json(ping(8)[0])
    with pytest.raises(RemoteProtocolError, match="add up"):
        list(decoder().feed(prefix(len(header), 200 << 20) + header))


def test_a_huge_promised_tensor_takes_memory_only_as_its_bytes_arrive() -> None:
    psutil = pytest.importorskip("psutil")
    message = Ping(command_id=COMMAND, tensors=(TensorSpec(name="padding", dtype=Dtype.FLOAT32, shape=(50 << 20,)),))
    header = MESSAGES.adapter.dump_json(message)
    before = psutil.Process().memory_info().rss
    into = decoder()
    assert list(into.feed(prefix(len(header), 200 << 20) + header + bytes(1000))) == []
    assert into.payload_in_progress == 1000
    assert psutil.Process().memory_info().rss - before < 20 << 20


@pytest.mark.parametrize(
    ("limits", "header", "payload"),
    [(UNTRUSTED, (16 << 10) + 1, 0), (UNTRUSTED, 10, 1), (GREETING, 10, 1), (GREETING, (4 << 20) + 1, 0)],
)
def test_limits_hold_to_the_byte(limits: Limits, header: int, payload: int) -> None:
    with pytest.raises(RemoteProtocolError, match="over the limit"):
        list(decoder(limits).feed(prefix(header, payload)))
    assert list(decoder(limits).feed(prefix(limits.header_bytes, limits.payload_bytes))) == []


def mutated(rng: random.Random) -> bytes:
    """Returns: a frame or two with some damage: flips, cuts, insertions, swapped halves, lies about lengths, wrong JSON."""
    if rng.random() < 0.5:  # damage that the prefix knows nothing of: the header's own checks have to find it
        frame = rng.choice(FRAMES)
        header_bytes = PREFIX.unpack_from(frame)[3]
        header = damaged(rng, frame[PREFIX.size : PREFIX.size + header_bytes])
        payload = frame[PREFIX.size + header_bytes :]
        return prefix(len(header), len(payload)) + header + payload
    return damaged(rng, rng.choice(FRAMES) + (rng.choice(FRAMES) if rng.random() < 0.3 else b""))


def damaged(rng: random.Random, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        match rng.randrange(8):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randint(1, 9))
            case 3:
                data = data[at:] + data[:at]
            case 4 if len(data) >= PREFIX.size:
                PREFIX.pack_into(
                    data,
                    0,
                    b"SN",
                    1,
                    0,
                    rng.choice((0, 1, len(data), 2**31, 2**32 - 1)),
                    rng.choice((0, 1, 8, 2**40, 2**64 - 1)),
                )
            case 5:
                data[at:at] = rng.choice((b"null", b"-1", b"1e999", b"NaN", b'"', b"{", b"[" * 50, b"\\u0000", b"\xff"))
            case 6:
                data[at : at + rng.randint(1, 20)] = b""
            case 7:
                data = data.replace(b"0", b"99999999999", 1) if rng.random() < 0.5 else data.replace(b":", b":-", 2)
        if not data:
            return b"\0"
    return bytes(data)


def refuses_or_reads(data: bytes, limits: Limits) -> bool:
    """True if the decoder refused. Anything but RemoteProtocolError propagates."""
    into = decoder(limits)
    try:
        for frame in into.feed(data):
            assert sum(spec.nbytes for spec in frame.message.tensors) == sum(map(len, frame.payloads))
    except RemoteProtocolError:
        return True
    return False


@pytest.mark.parametrize("limits", [Limits(), GREETING, UNTRUSTED], ids=["member", "greeting", "untrusted"])
def test_twenty_thousand_damaged_frames_end_in_nothing_but_a_protocol_error(limits: Limits) -> None:
    rng = random.Random(20_261_121)
    refused = sum(refuses_or_reads(mutated(rng), limits) for _ in range(7_000))
    assert refused > 4_000


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=1500)
def test_arbitrary_bytes_end_in_nothing_but_a_protocol_error(data: bytes, framed: bool) -> None:
    refuses_or_reads(prefix(len(data), 0) + data if framed else data, Limits())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "tensors", "node_id", "shape"]), inner)
    ),
    max_leaves=8,
)


@given(st.sampled_from((1, 2)), st.binary(max_size=200), st.integers(0, 300))
@settings(max_examples=500)
def test_any_bytes_as_a_compact_header_end_in_nothing_but_a_protocol_error(kind: int, noise: bytes, cut: int) -> None:
    (good,) = (sample.pack() for sample in SAMPLES if type(sample) is MESSAGES.compact[kind])
    for header in (noise, good[:cut], good[:cut] + noise, bytes(a ^ b for a, b in zip(good, noise, strict=False))):
        refuses_or_reads(prefix(len(header), 0, kind=kind) + header, Limits())


@given(st.sampled_from([sample for sample in SAMPLES if isinstance(sample, BaseModel)]), st.data())
@settings(max_examples=500)
def test_any_json_in_any_field_ends_in_nothing_but_a_protocol_error(message: AnyMessage, data: st.DataObject) -> None:
    import json

    fields = json.loads(MESSAGES.adapter.dump_json(message))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(JSON)
    header = json.dumps(fields).encode()
    refuses_or_reads(
        prefix(len(header), sum(map(len, payloads(message)))) + header + b"".join(payloads(message)), Limits()
    )
