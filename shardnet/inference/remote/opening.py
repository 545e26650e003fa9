"""A GGUF at an address, or all parts of one that llama.cpp split by size, as a header whose tensors come over the network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shardnet.inference.gguf.cursor import Cursor
from shardnet.inference.gguf.header import GgufHeader, Origin, parse_gguf_header
from shardnet.inference.gguf.layout import check_layers, join_parts, part_names
from shardnet.inference.remote.address import Address, parse_address, token_for
from shardnet.inference.remote.ranges import PATIENCE_S, RemoteFile
from shardnet.inference.remote.tensors import RemoteTensors
from shardnet.inference.remote.transfers import Transfers


@dataclass(frozen=True, slots=True)
class Traffic:
    """What reading a model took: bytes asked for, repeats included, and bytes of its files."""

    asked_bytes: int
    file_bytes: int


def open_url(url: str, *, environ: Mapping[str, str] = os.environ, patience_s: float = PATIENCE_S) -> GgufHeader:
    """Read the header of the model at an address; its tensors' bytes are asked for when they are read.

    Args:
        patience_s: how long nothing may come until it is given up.

    Returns: a header whose `origins` say which version of which files it is; `close_url` ends what it holds open.
    Raises: UsageError, SettingsError (the address or the token cannot be used), and as `RemoteFile.open` and `read_model`.
    """
    address = parse_address(url)
    token = token_for(address, environ)
    transfers = Transfers()
    try:
        return _Opening(transfers, token, patience_s).model(address)
    except BaseException:
        transfers.close()
        raise


def traffic_of(header: GgufHeader) -> Traffic | None:
    """Returns: what was asked for a model so far; None for one that does not come over the network."""
    data = _remote(header)
    return Traffic(data.asked_bytes, data.file_bytes) if data is not None else None


def close_url(header: GgufHeader) -> None:
    """End all transfers of a model. Does nothing to one that is here."""
    data = _remote(header)
    if data is not None:
        data.close()


def _remote(header: GgufHeader) -> RemoteTensors | None:
    # Of a model that is quantised on the way only those tensors come as they are that keep their type; each model has some.
    return next((tensor.data for tensor in header.tensors if isinstance(tensor.data, RemoteTensors)), None)


class _Opening:
    def __init__(self, transfers: Transfers, token: str, patience_s: float) -> None:
        self._transfers, self._token, self._patience_s = transfers, token, patience_s
        self._files: dict[Path, RemoteFile] = {}

    def model(self, address: Address) -> GgufHeader:
        """Returns: the header of the whole model."""
        header = self._file(address)
        if names := part_names(header, address.name):
            header = join_parts(
                [header if name == address.name else self._file(address.beside(name)) for name in names]
            )
        else:
            check_layers(header)
        data = RemoteTensors(self._files, self._transfers)
        return replace(
            header,
            path=Path(address.name),
            tensors=tuple(replace(tensor, data=data) for tensor in header.tensors),
            paths=(),
            origins=tuple(_origin(self._files[path]) for path in header.paths),
        )

    def _file(self, address: Address) -> GgufHeader:
        path = Path(address.name)
        file = RemoteFile(address, self._transfers.client, token=self._token, patience_s=self._patience_s)
        self._files[path] = file
        cursor = _RemoteCursor(file, self._transfers, path)
        header = parse_gguf_header(cursor)
        # Nothing of it stands in a file here, so all values, vocabularies too, are kept with it.
        fields = {
            key: field if field.inline is not None else replace(field, inline=cursor.passed(field.start, field.end))
            for key, field in header.fields.items()
        }
        return replace(header, fields=fields)


class _RemoteCursor(Cursor):
    """Keeps all that it has read: a header, and at most a window more."""

    def __init__(self, file: RemoteFile, transfers: Transfers, path: Path) -> None:
        version = transfers.run(file.open())
        super().__init__(-1, version.size, path)
        self._file, self._transfers = file, transfers
        self._read_so_far = bytearray()

    def _read(self, start: int, least: int, most: int) -> bytes:
        have = len(self._read_so_far)
        if start + least > have and have < self.size:
            self._read_so_far += self._transfers.run(self._file.fetch(have, min(start + most, self.size)))
        return bytes(self._read_so_far[start : start + most])

    def passed(self, start: int, end: int) -> bytes:
        """Returns: bytes that were passed already."""
        return bytes(self._read_so_far[start:end])


def _origin(file: RemoteFile) -> Origin:
    assert file.version is not None
    return Origin(file.address.shown, str(file.version))
