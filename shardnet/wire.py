"""Framing without I/O: bytes <-> (message, tensor payloads). All limits are checked before memory is taken.

A frame is

    magic b"SN"  u8 version  u8 flags (0)  u32 header_bytes  u64 payload_bytes     little endian, 16 bytes
    header   JSON of one message
    payload  the tensors that the header lists, one after the other

The same framing serves the network (`messages.MESSAGES`) and the pipe to the engine process (`inference.protocol`).
Shape of the idea: sans-I/O protocols, as websockets' `protocol.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from shardnet.errors import LocalProtocolError, RemoteProtocolError
from shardnet.shards import TensorSpec

MAGIC = b"SN"
VERSION = 1
PREFIX = struct.Struct("<2sBBIQ")

MAX_HEADER_BYTES = 4 << 20
"""A LOAD_SHARD carries a manifest: about 300 bytes a shard."""
MAX_PAYLOAD_BYTES = 256 << 20
"""A prompt chunk of 8,192 tokens at n_embd 8,192, float32."""
MAX_UNTRUSTED_HEADER_BYTES = 16 << 10
"""Before a peer has said Hello: nobody may make us allocate more than this."""

Buffer = bytes | bytearray | memoryview


class CarriesTensors(Protocol):
    """What a message must offer to be framed."""

    @property
    def tensors(self) -> tuple[TensorSpec, ...]: ...


M = TypeVar("M", bound=CarriesTensors)


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest frame that will be taken in."""

    header_bytes: int = MAX_HEADER_BYTES
    payload_bytes: int = MAX_PAYLOAD_BYTES


UNTRUSTED = Limits(header_bytes=MAX_UNTRUSTED_HEADER_BYTES, payload_bytes=0)


@dataclass(frozen=True, slots=True)
class Frame(Generic[M]):
    """One received message and its tensors' bytes, in the order of `message.tensors`."""

    message: M
    payloads: tuple[memoryview, ...] = ()

    def payload(self, name: str) -> memoryview | None:
        """Returns: the bytes of the tensor called `name`, or None."""
        for spec, data in zip(self.message.tensors, self.payloads, strict=True):
            if spec.name == name:
                return data
        return None


def encode(adapter: TypeAdapter[M], message: M, payloads: Sequence[Buffer] = ()) -> list[Buffer]:
    """Returns: the buffers of one frame, to be written in order.

    Raises: LocalProtocolError if the payloads are not what `message.tensors` describes.
    """
    sizes = [memoryview(data).nbytes for data in payloads]
    if sizes != [spec.nbytes for spec in message.tensors]:
        raise LocalProtocolError(f"payloads of {sizes} bytes for tensors {message.tensors}")
    header = adapter.dump_json(message, exclude_defaults=False)
    total = sum(sizes)
    if len(header) > MAX_HEADER_BYTES or total > MAX_PAYLOAD_BYTES:
        raise LocalProtocolError(f"frame too large: header {len(header)}, payload {total} bytes")
    prefix = PREFIX.pack(MAGIC, VERSION, 0, len(header), total)
    return [prefix + header, *(memoryview(data).cast("B") for data in payloads if memoryview(data).nbytes)]


class FrameDecoder(Generic[M]):
    """Feed it bytes, take frames. After an error it is of no more use: close the connection."""

    def __init__(self, adapter: TypeAdapter[M], limits: Limits = Limits()) -> None:
        self._adapter = adapter
        self.limits = limits
        self._buffer = bytearray()
        self._need = PREFIX.size
        self._sizes: tuple[int, int] | None = None

    @property
    def buffered(self) -> int:
        """Returns: bytes received that are not yet a whole frame."""
        return len(self._buffer)

    def feed(self, data: Buffer) -> Iterator[Frame[M]]:
        """Yield each frame that `data` completes.

        Raises: RemoteProtocolError for a bad prefix, a size over the limit, a header that is no message, or tensors that do not add up.
        """
        self._buffer += data
        while len(self._buffer) >= self._need:
            if self._sizes is None:
                self._sizes = self._check_prefix()
                self._need = PREFIX.size + sum(self._sizes)
                continue
            whole = (
                bytes(memoryview(self._buffer)[: self._need]) if len(self._buffer) > self._need else self._take_all()
            )
            if len(self._buffer):
                del self._buffer[: self._need]
            header_bytes, _ = self._sizes
            self._sizes, self._need = None, PREFIX.size
            yield self._parse(memoryview(whole), header_bytes)

    def _take_all(self) -> bytes | bytearray:
        whole, self._buffer = self._buffer, bytearray()
        return whole

    def _check_prefix(self) -> tuple[int, int]:
        magic, version, flags, header_bytes, payload_bytes = PREFIX.unpack_from(self._buffer)
        if magic != MAGIC:
            raise RemoteProtocolError("the peer does not speak shardnet's protocol")
        if version != VERSION or flags:
            raise RemoteProtocolError(
                f"the peer frames its messages by version {version}, this is version {VERSION}: update the older one"
            )
        if header_bytes > self.limits.header_bytes or payload_bytes > self.limits.payload_bytes:
            raise RemoteProtocolError(
                f"frame of {header_bytes} + {payload_bytes} bytes is over the limit", header=header_bytes
            )
        return header_bytes, payload_bytes

    def _parse(self, whole: memoryview, header_bytes: int) -> Frame[M]:
        start = PREFIX.size + header_bytes
        try:
            message = self._adapter.validate_json(bytes(whole[PREFIX.size : start]))
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)[:3]
            )
            raise RemoteProtocolError(f"malformed message: {problems}"[:500]) from None
        payloads = []
        for spec in message.tensors:
            payloads.append(whole[start : start + spec.nbytes])
            start += spec.nbytes
        if start != len(whole):
            raise RemoteProtocolError("tensors do not add up to the payload")
        return Frame(message, tuple(payloads))
