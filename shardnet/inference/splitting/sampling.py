"""A hash of samples of a model's weights: tells apart models that have one header, such as two trainings of it, without reading all of them.

Knows only the unsplit model. It is no proof that two models are equal: who changes weights between the samples keeps the hash (decision 0007).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from shardnet.errors import GgufError, UsageError
from shardnet.inference.gguf.header import GgufHeader, GgufTensor, StreamedData

SAMPLE_BYTES = 1024

Sample = tuple[GgufTensor, int, int]
"""A tensor, and where in it the sample starts and ends."""


def weights_sha256(header: GgufHeader) -> str:
    """Returns: SHA-256, hex, over each tensor's name and its first, middle and last bytes, in the header's order.

    Raises: UsageError if the weights are made on the way; GgufError if the file ends early; OSError; what its `StreamedData` raises.
    """
    wanted = [sample for tensor in header.tensors for sample in _samples_of(tensor)]
    digest = hashlib.sha256()
    for (tensor, start, _end), data in zip(wanted, _read(header, wanted), strict=True):
        if start == 0:
            digest.update(tensor.name.encode() + b"\0")
        digest.update(data)
    return digest.hexdigest()


def _samples_of(tensor: GgufTensor) -> list[Sample]:
    if tensor.nbytes <= 3 * SAMPLE_BYTES:
        return [(tensor, 0, tensor.nbytes)]
    starts = (0, (tensor.nbytes - SAMPLE_BYTES) // 2, tensor.nbytes - SAMPLE_BYTES)
    return [(tensor, start, start + SAMPLE_BYTES) for start in starts]


def _read(header: GgufHeader, wanted: Sequence[Sample]) -> list[bytes]:
    data = header.tensors[0].data
    if any(tensor.data is not None and not isinstance(tensor.data, StreamedData) for tensor in header.tensors):
        raise UsageError(
            f"{header.path} is converted or quantised on the way, and cannot be cut in parts: leave --only out, or make a GGUF of it first"
        )
    if isinstance(data, StreamedData):
        return data.samples(wanted)
    found = []
    files = {path: path.open("rb", buffering=0) for path in header.paths}
    try:
        for tensor, start, end in wanted:
            file = files[tensor.path]
            file.seek(tensor.offset + start)
            piece = file.read(end - start)
            if len(piece) != end - start:
                raise GgufError(f"{tensor.path} became shorter while it was read")
            found.append(piece)
    finally:
        for file in files.values():
            file.close()
    return found
