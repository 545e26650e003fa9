"""Framing without I/O: bytes <-> (message, tensor payloads). All limits are checked before memory is taken.

A frame is

    magic b"SN"  u8 version  u8 kind  u32 header_bytes  u64 payload_bytes     little endian, 16 bytes
    header   kind 0: JSON of one message; another kind: the fixed binary form of the one message that the codec knows by this number
    payload  the message's tensors, one after the other

The same framing serves the network (`messages.MESSAGES`) and the pipe to the engine process (`inference.engine.protocol`).
Shape of the idea: sans-I/O protocols, as websockets' `protocol.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from shardnet.errors import LocalProtocolError, RemoteProtocolError
from shardnet.faults import sentence
from shardnet.shards import TensorSpec

MAGIC = b"SN"
VERSION = 1
PREFIX = struct.Struct("<2sBBIQ")

MAX_HEADER_BYTES = 4 << 20
"""A LOAD_SHARD carries a manifest: about 300 bytes a shard."""
MAX_PAYLOAD_BYTES = 256 << 20
"""A prompt chunk of 8,192 tokens at n_embd 8,192, float32."""
MAX_UNTRUSTED_HEADER_BYTES = 16 << 10
"""From somebody whose membership is not proved: nobody may make us allocate more than this."""

SCRATCH_BYTES = 32 << 10
"""Prefixes, small headers and small payloads are read here, many frames at a time: a decode step with its hidden state fits."""
FIRST_BODY_BYTES = 1 << 20
GROWTH = 8
"""A larger body starts so small and grows by so much: what a peer makes us hold is at most that many times what it has really sent,
and fresh pages from the system for each large tensor would cost twice the time that this copying does."""

Buffer = bytes | bytearray | memoryview


class CarriesTensors(Protocol):
    """What a message must offer to be framed."""

    @property
    def tensors(self) -> tuple[TensorSpec, ...]: ...

    @property
    def payload_sizes(self) -> tuple[int, ...]:
        """Returns: bytes of each tensor."""
        ...


class Compact(CarriesTensors, Protocol):
    """A message with a fixed binary form, for what travels with every token."""

    def pack(self) -> bytes:
        """Returns: the header."""
        ...

    @classmethod
    def unpack(cls, header: memoryview) -> Self:
        """Raises: ValueError or struct.error for what is no such header."""
        ...


M = TypeVar("M", bound=CarriesTensors)
JSON = 0


class Codec(Generic[M]):
    """Headers: JSON for all messages but those that have a compact form.

    Args:
        adapter: the union of the messages in JSON.
        compact: kind, 1 to 255, to the message's class.
    """

    def __init__(self, adapter: TypeAdapter[Any], compact: Mapping[int, type[Compact]]) -> None:
        self.adapter = adapter
        self.compact = dict(compact)
        self._kinds: dict[type, int] = {message: kind for kind, message in self.compact.items()}

    def dump(self, message: M) -> tuple[int, bytes]:
        """Returns: kind and header."""
        kind = self._kinds.get(type(message), JSON)
        if kind:
            return kind, cast("Compact", message).pack()
        return JSON, self.adapter.dump_json(message)

    def load(self, kind: int, header: memoryview) -> M:
        """Raises: RemoteProtocolError."""
        try:
            if kind:
                return cast("M", self.compact[kind].unpack(header))
            return cast("M", self.adapter.validate_json(bytes(header)))
        except ValidationError as error:
            raise RemoteProtocolError(f"malformed message: {sentence(error)}"[:500]) from None
        except (ValueError, struct.error) as error:
            raise RemoteProtocolError(f"malformed message of kind {kind}: {error}"[:500]) from None


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest frame that will be taken in."""

    header_bytes: int = MAX_HEADER_BYTES
    payload_bytes: int = MAX_PAYLOAD_BYTES


UNTRUSTED = Limits(header_bytes=MAX_UNTRUSTED_HEADER_BYTES, payload_bytes=0)
GREETING = Limits(payload_bytes=0)
"""Of a member that has not said Hello yet. Hello lists the shards a node holds, which can be thousands."""


class Frame(NamedTuple, Generic[M]):
    """One received message and its tensors' bytes, in the order of `message.tensors`."""

    message: M
    payloads: tuple[memoryview, ...] = ()

    def payload(self, name: str) -> memoryview | None:
        """Returns: the bytes of the tensor called `name`, or None."""
        for spec, data in zip(self.message.tensors, self.payloads, strict=True):
            if spec.name == name:
                return data
        return None


def encode(codec: Codec[M], message: M, payloads: Sequence[Buffer] = ()) -> list[Buffer]:
    """Returns: the buffers of one frame, to be written in order.

    Raises: LocalProtocolError if the payloads are not what `message.tensors` describes.
    """
    sizes = tuple([memoryview(data).nbytes for data in payloads])
    if sizes != message.payload_sizes:
        raise LocalProtocolError(f"payloads of {sizes} bytes for tensors {message.tensors}")
    kind, header = codec.dump(message)
    total = sum(sizes)
    if len(header) > MAX_HEADER_BYTES or total > MAX_PAYLOAD_BYTES:
        raise LocalProtocolError(f"frame too large: header {len(header)}, payload {total} bytes")
    prefix = PREFIX.pack(MAGIC, VERSION, kind, len(header), total)
    return [prefix + header, *(memoryview(data).cast("B") for data in payloads if memoryview(data).nbytes)]


class FrameDecoder(Generic[M]):
    """Bytes in, frames out. After an error it is of no more use: close the connection.

    Either `feed` it bytes, or read straight into `get_buffer()` and tell `advance` how many there are: then a large payload is never copied.
    """

    def __init__(self, codec: Codec[M], limits: Limits = Limits()) -> None:
        self._codec = codec
        self.limits = limits
        self.frames = 0
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._start = 0
        self._end = 0  # scratch[start:end] was received and not looked at yet
        self._body: memoryview | None = None  # a header or payload that does not fit there: body[:filled] was received
        self._filled = 0
        self._sizes: tuple[int, int] | None = None  # of the frame in progress, once its prefix is here
        self._kind = JSON
        self._payload_sizes: tuple[int, ...] = ()
        self._message: M | None = None  # of the frame in progress, once its header is here

    @property
    def buffered(self) -> int:
        """Returns: bytes received that belong to a frame which is not whole yet."""
        count = self._end - self._start + self._filled
        if self._sizes is not None:
            count += PREFIX.size + (self._sizes[0] if self._message is not None else 0)
        return count

    @property
    def payload_in_progress(self) -> int | None:
        """Returns: bytes of the current frame's payload that are here; None while its header is not."""
        return None if self._message is None else self._end - self._start + self._filled

    def feed(self, data: Buffer) -> Iterator[Frame[M]]:
        """Yield each frame that `data` completes.

        Raises: RemoteProtocolError for a bad prefix, a size over the limit, a header that is no message, or tensors that do not add up.
        """
        rest = memoryview(data).cast("B")
        while len(rest):
            space = self.get_buffer()
            count = min(len(space), len(rest))
            space[:count] = rest[:count]
            rest = rest[count:]
            yield from self.advance(count)

    def get_buffer(self) -> memoryview:
        """Returns: where the next bytes belong; never empty."""
        if self._body is not None:
            return self._body[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start:
            left = self._end - self._start
            self._scratch[:left] = bytes(self._scratch[self._start : self._end])
            self._start, self._end = 0, left
        return self._scratch[self._end :]

    def advance(self, count: int) -> Iterator[Frame[M]]:
        """Yield each frame that the `count` bytes just put into `get_buffer()` complete. Take them all before the next `get_buffer`.

        Raises: RemoteProtocolError, as `feed`.
        """
        if self._body is None:
            self._end += count
        else:
            self._filled += count
        while True:
            if self._sizes is None:
                if self._end - self._start < PREFIX.size:
                    return
                self._sizes = self._check_prefix()
                self._start += PREFIX.size
            header_bytes, payload_bytes = self._sizes
            if self._message is None:
                header = self._take(header_bytes)
                if header is None:
                    return
                self._message = self._parse(header, payload_bytes)
            payload = self._take(payload_bytes)
            if payload is None:
                return
            frame = Frame(self._message, _cut(payload, self._payload_sizes))
            self._sizes = self._message = None
            self.frames += 1
            yield frame

    def _take(self, size: int) -> memoryview | None:
        """Returns: the next `size` bytes, for keeps; None if they are not all here."""
        if self._body is not None:
            if self._filled == size:
                whole, self._body, self._filled = self._body, None, 0
                return whole
            if self._filled == len(self._body):
                self._grow(min(size, GROWTH * self._filled))
            return None
        here = self._end - self._start
        if here >= size:
            self._start += size
            return memoryview(bytes(self._scratch[self._start - size : self._start]))
        if size > SCRATCH_BYTES - PREFIX.size:
            self._body = self._scratch[self._start : self._end]
            self._filled = here
            self._grow(min(size, FIRST_BODY_BYTES))
            self._start = self._end = 0
        return None

    def _grow(self, size: int) -> None:
        grown = memoryview(bytearray(size))
        if self._body is not None:
            grown[: self._filled] = self._body[: self._filled]
        self._body = grown

    def _check_prefix(self) -> tuple[int, int]:
        magic, version, kind, header_bytes, payload_bytes = PREFIX.unpack_from(self._scratch, self._start)
        if magic != MAGIC:
            raise RemoteProtocolError("the peer does not speak shardnet's protocol")
        if version != VERSION or (kind and kind not in self._codec.compact):
            raise RemoteProtocolError(
                f"the peer frames its messages by version {version}, this is version {VERSION}: update the older one"
            )
        if header_bytes > self.limits.header_bytes or payload_bytes > self.limits.payload_bytes:
            raise RemoteProtocolError(
                f"frame of {header_bytes} + {payload_bytes} bytes is over the limit of "
                f"{self.limits.header_bytes} + {self.limits.payload_bytes}",
                header=header_bytes,
            )
        self._kind = kind
        return header_bytes, payload_bytes

    def _parse(self, header: memoryview, payload_bytes: int) -> M:
        message = self._codec.load(self._kind, header)
        self._payload_sizes = message.payload_sizes
        if sum(self._payload_sizes) != payload_bytes:
            raise RemoteProtocolError("tensors do not add up to the payload")
        return message


def _cut(payload: memoryview, sizes: Sequence[int]) -> tuple[memoryview, ...]:
    parts = []
    start = 0
    for size in sizes:
        parts.append(payload[start : start + size])
        start += size
    return tuple(parts)
